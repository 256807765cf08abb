//! Names out of parse trees.

use pg_query::protobuf::{ObjectWithArgs, RangeVar, RoleSpec, RoleSpecType, TypeName};
use pg_query::{Node, NodeEnum};

/// A name with its schema, unquoted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub schema: Option<String>,
    pub name: String,
}

impl Name {
    /// A name of something outside of schemas.
    pub(crate) fn bare(name: &str) -> Self {
        Name { schema: None, name: name.to_owned() }
    }

    /// Another name in the same schema.
    pub(crate) fn sibling(&self, name: &str) -> Self {
        Name { schema: self.schema.clone(), name: name.to_owned() }
    }
}

/// The text of a string node.
pub(crate) fn text(node: &Node) -> Option<&str> {
    match node.node.as_ref()? {
        NodeEnum::String(string) => Some(&string.sval),
        _ => None,
    }
}

/// The texts of a list of string nodes, in order.
pub(crate) fn texts(nodes: &[Node]) -> Vec<String> {
    nodes.iter().filter_map(text).map(str::to_owned).collect()
}

/// `[catalog.][schema.]name` as a list of strings.
pub(crate) fn qualified(nodes: &[Node]) -> Option<Name> {
    let mut parts = nodes.iter().rev();
    let name = text(parts.next()?)?.to_owned();
    let schema = match parts.next() {
        Some(part) => Some(text(part)?.to_owned()),
        None => None,
    };
    Some(Name { schema, name })
}

/// A name of a relation.
pub(crate) fn relation(range: &RangeVar) -> Name {
    Name {
        schema: Some(range.schemaname.clone()).filter(|schema| !schema.is_empty()),
        name: range.relname.clone(),
    }
}

/// A name of a type, without its modifiers.
pub(crate) fn type_name(name: &TypeName) -> Option<Name> {
    qualified(&name.names)
}

/// A name of a function, aggregate or operator, without its arguments.
pub(crate) fn with_args(object: &ObjectWithArgs) -> Option<Name> {
    qualified(&object.objname)
}

/// A role, as a statement writes it.
pub(crate) fn role(role: &RoleSpec) -> String {
    match role.roletype() {
        RoleSpecType::RolespecPublic => "public".to_owned(),
        RoleSpecType::RolespecCurrentUser => "CURRENT_USER".to_owned(),
        RoleSpecType::RolespecCurrentRole => "CURRENT_ROLE".to_owned(),
        RoleSpecType::RolespecSessionUser => "SESSION_USER".to_owned(),
        _ => role.rolename.clone(),
    }
}

/// The list in a node, if it is one.
pub(crate) fn list(node: &Node) -> Option<&[Node]> {
    match node.node.as_ref()? {
        NodeEnum::List(list) => Some(&list.items),
        _ => None,
    }
}
