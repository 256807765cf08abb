//! Cuts the text of a dump into statements, comments and psql commands.
//!
//! Only the text is looked at; what a statement means is decided elsewhere.

use crate::error::{quote, PlanError};
use crate::lexer::{line_length, next_token, Token, Unterminated};

/// What the splitter finds, in the order of the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A statement, without its semicolon.
    Statement { line: usize, sql: &'a str },
    /// A line comment between statements, without its dashes.
    Comment(&'a str),
    /// A psql command, e.g. `\restrict abc`.
    Command { line: usize, text: &'a str },
}

/// Walks over a dump.
pub(crate) struct Splitter<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    /// Set by the reader when the dump turns `standard_conforming_strings` off.
    pub(crate) backslashes: bool,
}

impl<'a> Splitter<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Splitter { text, at: 0, line: 1, backslashes: false }
    }

    /// The next piece; none at the end of the text.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Piece<'a>>, PlanError> {
        let bytes = self.text.as_bytes();
        while self.at < bytes.len() {
            if bytes[self.at] == b'\\' {
                return Ok(Some(self.command()));
            }
            let start = self.at;
            let (token, end) = self.token(start, start)?;
            match token {
                Token::Space | Token::BlockComment | Token::Symbol(b';') => self.advance(end),
                Token::LineComment => {
                    self.advance(end);
                    return Ok(Some(Piece::Comment(self.text[start + 2..end].trim())));
                }
                _ => return self.statement().map(Some),
            }
        }
        Ok(None)
    }

    fn command(&mut self) -> Piece<'a> {
        let start = self.at;
        let line = self.line;
        let end = start + line_length(&self.text.as_bytes()[start..]);
        self.advance(end);
        Piece::Command { line, text: self.text[start..end].trim() }
    }

    fn statement(&mut self) -> Result<Piece<'a>, PlanError> {
        let start = self.at;
        let line = self.line;
        let mut parentheses = 0usize;
        let mut body = AtomicBody::default();
        let mut at = start;
        while at < self.text.len() {
            let (token, end) = self.token(at, start)?;
            match token {
                Token::Symbol(b'(') => parentheses += 1,
                Token::Symbol(b')') => parentheses = parentheses.saturating_sub(1),
                Token::Symbol(b';') if parentheses == 0 && !body.is_open() => {
                    self.advance(end);
                    let sql = self.text[start..at].trim_end();
                    return Ok(Piece::Statement { line, sql });
                }
                Token::Word if parentheses == 0 => body.word(&self.text[at..end]),
                _ => {}
            }
            at = end;
        }
        Err(PlanError::Unterminated { what: "statement", line, quote: quote(&self.text[start..]) })
    }

    fn token(&self, at: usize, statement: usize) -> Result<(Token, usize), PlanError> {
        next_token(self.text.as_bytes(), at, self.backslashes).map_err(|Unterminated(what)| {
            let newlines = count_lines(&self.text[self.at..at]);
            PlanError::Unterminated {
                what,
                line: self.line + newlines,
                quote: quote(&self.text[statement..]),
            }
        })
    }

    fn advance(&mut self, to: usize) {
        self.line += count_lines(&self.text[self.at..to]);
        self.at = to;
    }
}

fn count_lines(text: &str) -> usize {
    text.bytes().filter(|b| *b == b'\n').count()
}

/// Follows the words of a statement to know whether a semicolon belongs to the
/// body of an SQL function (`CREATE FUNCTION ... BEGIN ATOMIC ... END`).
#[derive(Default)]
struct AtomicBody {
    words: usize,
    creates: bool,
    after_begin: bool,
    depth: usize,
}

impl AtomicBody {
    fn is_open(&self) -> bool {
        self.depth > 0
    }

    fn word(&mut self, word: &str) {
        self.words += 1;
        let is = |keyword: &str| word.eq_ignore_ascii_case(keyword);
        if self.words == 1 {
            self.creates = is("create");
        } else if self.creates {
            self.word_of_create(is);
        }
    }

    fn word_of_create(&mut self, is: impl Fn(&str) -> bool) {
        if self.depth == 0 {
            // No other statement has the words BEGIN ATOMIC next to each other
            // outside of parentheses and quotes.
            if self.after_begin && is("atomic") {
                self.depth = 1;
            }
            self.after_begin = is("begin");
        } else if is("case") {
            self.depth += 1;
        } else if is("end") {
            self.depth -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn statements(text: &str) -> Vec<(usize, &str)> {
        let mut splitter = Splitter::new(text);
        let mut found = Vec::new();
        while let Some(piece) = splitter.next_piece().unwrap() {
            if let Piece::Statement { line, sql } = piece {
                found.push((line, sql));
            }
        }
        found
    }

    #[test]
    fn semicolons_in_quotes_and_bodies_dont_end_a_statement() {
        let text = "-- one\nSELECT ';' AS \"a;b\", $x$;$x$ /* ; */;\n\nCREATE RULE r AS ON INSERT TO t DO ALSO (a; b);\nSELECT 2";
        assert_eq!(
            statements(&format!("{text};")),
            vec![
                (2, "SELECT ';' AS \"a;b\", $x$;$x$ /* ; */"),
                (4, "CREATE RULE r AS ON INSERT TO t DO ALSO (a; b)"),
                (5, "SELECT 2"),
            ]
        );
    }

    #[test]
    fn atomic_bodies_stay_whole() {
        let body = "CREATE FUNCTION f(begin integer) RETURNS int\n LANGUAGE sql\n BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 ELSE 2 END;\n SELECT 2;\nEND";
        assert_eq!(statements(&format!("{body};\nSELECT 1;")), vec![(1, body), (7, "SELECT 1")]);
    }

    #[test]
    fn commands_are_found_only_between_statements() {
        let text = "\\restrict abc\nSELECT '\n\\restrict x\n';\n\\unrestrict abc\n";
        let mut splitter = Splitter::new(text);
        let mut pieces = Vec::new();
        while let Some(piece) = splitter.next_piece().unwrap() {
            pieces.push(piece);
        }
        assert_eq!(
            pieces,
            vec![
                Piece::Command { line: 1, text: "\\restrict abc" },
                Piece::Statement { line: 2, sql: "SELECT '\n\\restrict x\n'" },
                Piece::Command { line: 5, text: "\\unrestrict abc" },
            ]
        );
    }

    #[test]
    fn the_line_of_a_missing_end_is_named() {
        let error = Splitter::new("\n\nSELECT 1,\n 'abc").next_piece().unwrap_err();
        assert!(matches!(error, PlanError::Unterminated { what: "quoted string", line: 4, .. }));
        let error = Splitter::new("SELECT 1").next_piece().unwrap_err();
        assert!(matches!(error, PlanError::Unterminated { what: "statement", line: 1, .. }));
    }
}
