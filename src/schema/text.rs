//! Reads the text of a statement without taking what stands in quotes for a part of it. Pure.

/// Where a word stands by itself in a text, outside of quotes.
pub fn word(text: &str, wanted: &str) -> Option<usize> {
    let alone = |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '"'));
    plain(text).map(|(at, _)| at).find(|at| {
        text[*at..].starts_with(wanted)
            && alone(text[..*at].chars().next_back())
            && alone(text[*at + wanted.len()..].chars().next())
    })
}

/// The characters of a text that are in no quotes, with their places.
pub fn plain(text: &str) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut quote = None;
    text.char_indices().filter(move |(_, c)| match quote {
        Some(open) => {
            if *c == open {
                quote = None;
            }
            false
        }
        None if matches!(c, '"' | '\'') => {
            quote = Some(*c);
            false
        }
        None => true,
    })
}
