//! Just enough of the lexer of psql to know where a token ends: strings,
//! quoted names, dollar quotes, comments and words. It doesn't know SQL.
//!
//! Follows `src/fe_utils/psqlscan.l`, which is what pg_dump's text is for.

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// White space.
    Space,
    /// `-- ...` up to the end of the line.
    LineComment,
    /// `/* ... */`, nested.
    BlockComment,
    /// A keyword or an unquoted name.
    Word,
    /// A string, quoted name or dollar-quoted body.
    Quoted,
    /// A single other character.
    Symbol(u8),
}

/// A string or comment without its end; says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unterminated(pub &'static str);

/// The token at `at`, and the offset after it. `at` must lie within `text`.
///
/// `backslashes` says that plain strings know backslash escapes
/// (`standard_conforming_strings = off`).
pub(crate) fn next_token(
    text: &[u8],
    at: usize,
    backslashes: bool,
) -> Result<(Token, usize), Unterminated> {
    let rest = &text[at..];
    match rest {
        [b'-', b'-', ..] => Ok((Token::LineComment, at + line_length(rest))),
        [b'/', b'*', ..] => block_comment(text, at),
        [b'\'', ..] => string(text, at + 1, backslashes),
        [b'e' | b'E', b'\'', ..] => string(text, at + 2, true),
        [b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'', ..] => string(text, at + 2, backslashes),
        [b'u' | b'U', b'&', b'\'', ..] => string(text, at + 3, false),
        [b'"', ..] => quoted_name(text, at + 1),
        [b'u' | b'U', b'&', b'"', ..] => quoted_name(text, at + 3),
        [b'$', ..] => dollar_quote(text, at),
        [byte, ..] if byte.is_ascii_whitespace() => {
            Ok((Token::Space, end_of(text, at, |b| b.is_ascii_whitespace())))
        }
        // Numbers count as words: `1e` isn't a name, but it must not be cut.
        [byte, ..] if is_word(*byte) => Ok((Token::Word, end_of(text, at, is_word))),
        [byte, ..] => Ok((Token::Symbol(*byte), at + 1)),
        [] => Ok((Token::Space, at)),
    }
}

/// Length of the first line, without its newline.
pub(crate) fn line_length(text: &[u8]) -> usize {
    text.iter().position(|b| *b == b'\n').unwrap_or(text.len())
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn end_of(text: &[u8], from: usize, within: impl Fn(u8) -> bool) -> usize {
    text[from..].iter().position(|b| !within(*b)).map_or(text.len(), |length| from + length)
}

fn string(text: &[u8], from: usize, backslashes: bool) -> Result<(Token, usize), Unterminated> {
    let mut at = from;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' if backslashes => at += 2,
            b'\'' if text.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return Ok((Token::Quoted, at + 1)),
            _ => at += 1,
        }
    }
    Err(Unterminated("quoted string"))
}

fn quoted_name(text: &[u8], from: usize) -> Result<(Token, usize), Unterminated> {
    let mut at = from;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' if text.get(at + 1) == Some(&b'"') => at += 2,
            b'"' => return Ok((Token::Quoted, at + 1)),
            _ => at += 1,
        }
    }
    Err(Unterminated("quoted name"))
}

fn block_comment(text: &[u8], from: usize) -> Result<(Token, usize), Unterminated> {
    let mut depth = 0usize;
    let mut at = from;
    while at < text.len() {
        match &text[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Ok((Token::BlockComment, at));
                }
            }
            _ => at += 1,
        }
    }
    Err(Unterminated("comment"))
}

fn dollar_quote(text: &[u8], from: usize) -> Result<(Token, usize), Unterminated> {
    let tag_end = match text.get(from + 1) {
        Some(b'$') => from + 1,
        Some(byte) if is_word_start(*byte) => end_of(text, from + 1, |b| is_word(b) && b != b'$'),
        _ => return Ok((Token::Symbol(b'$'), from + 1)),
    };
    if text.get(tag_end) != Some(&b'$') {
        return Ok((Token::Symbol(b'$'), from + 1));
    }
    let tag = &text[from..=tag_end];
    let mut at = tag_end + 1;
    while let Some(found) = text[at..].iter().position(|b| *b == b'$') {
        at += found;
        if text[at..].starts_with(tag) {
            return Ok((Token::Quoted, at + tag.len()));
        }
        at += 1;
    }
    Err(Unterminated("dollar-quoted string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(text: &str) -> Result<(Token, &str), Unterminated> {
        let (token, end) = next_token(text.as_bytes(), 0, false)?;
        Ok((token, &text[..end]))
    }

    #[test]
    fn tokens_end_where_psql_ends_them() {
        assert_eq!(first("'it''s' x"), Ok((Token::Quoted, "'it''s'")));
        assert_eq!(first(r"E'a\'b' x"), Ok((Token::Quoted, r"E'a\'b'")));
        assert_eq!(first(r"'a\' x"), Ok((Token::Quoted, r"'a\'")));
        assert_eq!(first("\"a\"\"b\" x"), Ok((Token::Quoted, "\"a\"\"b\"")));
        assert_eq!(first("$_$ ; $$ $_$;"), Ok((Token::Quoted, "$_$ ; $$ $_$")));
        assert_eq!(first("$1 + $2"), Ok((Token::Symbol(b'$'), "$")));
        assert_eq!(first("a$b$ x"), Ok((Token::Word, "a$b$")));
        assert_eq!(first("/* a /* b */ c */ x"), Ok((Token::BlockComment, "/* a /* b */ c */")));
        assert_eq!(first("-- a\nb"), Ok((Token::LineComment, "-- a")));
        assert_eq!(first("été x"), Ok((Token::Word, "été")));
        assert_eq!(first("else'x'"), Ok((Token::Word, "else")));
    }

    #[test]
    fn backslashes_escape_only_where_strings_know_them() {
        let text = br"'a\'b'";
        assert_eq!(next_token(text, 0, true), Ok((Token::Quoted, text.len())));
        assert_eq!(next_token(text, 0, false), Ok((Token::Quoted, 4)));
    }

    #[test]
    fn missing_ends_are_named() {
        assert_eq!(first("'abc"), Err(Unterminated("quoted string")));
        assert_eq!(first("\"abc"), Err(Unterminated("quoted name")));
        assert_eq!(first("$a$ $b$"), Err(Unterminated("dollar-quoted string")));
        assert_eq!(first("/* /* */"), Err(Unterminated("comment")));
    }
}
