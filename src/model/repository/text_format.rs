//! Protobuf's text format, in which a model server's `config.pbtxt` is written.
//!
//! Fields are kept by name, without a schema: a newer server has fields that this program does not know, and a parser
//! with a schema refuses the whole file for one of them.

/// Deepest nesting of messages.
const MAX_DEPTH: usize = 64;

/// The fields of a message, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    fields: Vec<(String, Value)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A string, without its quotes.
    Text(String),
    /// A number, a truth value, or the name of an enumerator.
    Word(String),
    Message(Message),
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TextError {
    pub line: usize,
    pub problem: String,
}

impl Message {
    /// Parses a whole text.
    ///
    /// # Errors
    /// The first place that is not text format.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let mut parser = Parser { rest: text, line: 1 };
        let message = parser.message(None, 0)?;
        Ok(message)
    }

    /// Every value of a field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value)
    }

    /// The value of a field that may be there once; the last one counts.
    pub fn last(&self, name: &str) -> Option<&Value> {
        self.fields.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The messages of a field.
    pub fn messages<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Message> {
        self.all(name).filter_map(|value| match value {
            Value::Message(message) => Some(message),
            _ => None,
        })
    }

    /// A string field; empty if it is not there.
    pub fn text(&self, name: &str) -> &str {
        match self.last(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// An enumerator's name; empty if it is not there.
    pub fn word(&self, name: &str) -> &str {
        match self.last(name) {
            Some(Value::Word(word)) => word,
            _ => "",
        }
    }

    /// The numbers of a field.
    ///
    /// # Errors
    /// A value that is no whole number of 64 bits.
    pub fn numbers(&self, name: &str) -> Result<Vec<i64>, String> {
        let number = |value: &Value| match value {
            Value::Word(word) => word.parse().map_err(|_| format!("{name}: {word} is no whole number")),
            _ => Err(format!("{name} holds whole numbers")),
        };
        self.all(name).map(number).collect()
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    /// Fields up to `end`, or to the end of the text.
    fn message(&mut self, end: Option<char>, depth: usize) -> Result<Message, TextError> {
        if depth > MAX_DEPTH {
            return Err(self.error("messages are nested too deep"));
        }
        let mut message = Message::default();
        loop {
            match (self.peek(), end) {
                (None, None) => return Ok(message),
                (None, Some(end)) => return Err(self.error(&format!("the text ends before {end}"))),
                (Some(found), Some(end)) if found == end => {
                    self.bump();
                    return Ok(message);
                }
                (Some(',' | ';'), _) => self.bump(),
                _ => self.field(&mut message, depth)?,
            }
        }
    }

    fn field(&mut self, message: &mut Message, depth: usize) -> Result<(), TextError> {
        let name = if self.peek() == Some('[') {
            // The name of an extension, which no field that is read has.
            let Some((name, rest)) = self.rest.split_once(']') else {
                return Err(self.error("a name in brackets does not end"));
            };
            self.line += name.matches('\n').count();
            self.rest = rest;
            format!("{name}]")
        } else {
            self.word("a field's name")?.to_owned()
        };
        let has_colon = self.peek() == Some(':');
        if has_colon {
            self.bump();
        }
        match self.peek() {
            Some('[') => self.list(&name, message, depth),
            Some('{' | '<') => {
                let value = self.value(depth)?;
                message.fields.push((name, value));
                Ok(())
            }
            _ if has_colon => {
                let value = self.value(depth)?;
                message.fields.push((name, value));
                Ok(())
            }
            _ => Err(self.error(&format!("a colon or a brace follows {name}"))),
        }
    }

    fn list(&mut self, name: &str, message: &mut Message, depth: usize) -> Result<(), TextError> {
        self.bump();
        loop {
            match self.peek() {
                Some(']') => {
                    self.bump();
                    return Ok(());
                }
                Some(',') => self.bump(),
                Some(_) => {
                    let value = self.value(depth)?;
                    message.fields.push((name.to_owned(), value));
                }
                None => return Err(self.error("a list does not end")),
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, TextError> {
        match self.peek() {
            Some('{') => {
                self.bump();
                self.message(Some('}'), depth + 1).map(Value::Message)
            }
            Some('<') => {
                self.bump();
                self.message(Some('>'), depth + 1).map(Value::Message)
            }
            Some('"' | '\'') => {
                let mut text = Vec::new();
                // Neighbouring strings are one.
                while let Some(quote @ ('"' | '\'')) = self.peek() {
                    self.string(quote, &mut text)?;
                }
                let text = String::from_utf8(text).map_err(|_| self.error("a string is not UTF-8"))?;
                Ok(Value::Text(text))
            }
            _ => self.word("a value").map(|word| Value::Word(word.to_owned())),
        }
    }

    /// A run of letters, digits and what numbers are written with.
    fn word(&mut self, what: &str) -> Result<&'a str, TextError> {
        self.skip();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        if end == 0 {
            let found = self.rest.chars().next().map_or("the end".to_owned(), |c| format!("{c:?}"));
            return Err(self.error(&format!("{what} was expected, and there is {found}")));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    fn string(&mut self, quote: char, text: &mut Vec<u8>) -> Result<(), TextError> {
        self.bump();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\n' => break,
                found if found == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(());
                }
                '\\' => {
                    let Some((at, escaped)) = characters.next() else { break };
                    match escaped {
                        'n' => text.push(b'\n'),
                        'r' => text.push(b'\r'),
                        't' => text.push(b'\t'),
                        '\\' | '\'' | '"' | '?' => text.push(escaped as u8),
                        'x' | 'X' | '0'..='7' => {
                            let (digits, base) = match escaped {
                                'x' | 'X' => (&self.rest[at + 1..], 16),
                                _ => (&self.rest[at..], 8),
                            };
                            let most = if base == 16 { 2 } else { 3 };
                            let digits: String = digits.chars().take_while(|c| c.is_digit(base)).take(most).collect();
                            let byte = u8::from_str_radix(&digits, base);
                            text.push(byte.map_err(|_| self.error("an escaped number is no byte"))?);
                            let taken = digits.len() - usize::from(base == 8);
                            for _ in 0..taken {
                                characters.next();
                            }
                        }
                        _ => return Err(self.error(&format!("\\{escaped} is no escape"))),
                    }
                }
                other => text.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        Err(self.error("a string does not end on its line"))
    }

    /// The next character that is neither white space nor comment.
    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest.chars().next()
    }

    fn bump(&mut self) {
        let mut characters = self.rest.chars();
        characters.next();
        self.rest = characters.as_str();
    }

    fn skip(&mut self) {
        loop {
            let trimmed = self.rest.trim_start();
            self.line += self.rest[..self.rest.len() - trimmed.len()].matches('\n').count();
            self.rest = trimmed;
            let Some(comment) = trimmed.strip_prefix('#') else { return };
            self.rest = &comment[comment.find('\n').unwrap_or(comment.len())..];
        }
    }

    fn error(&self, problem: &str) -> TextError {
        TextError { line: self.line, problem: problem.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lists_and_messages_are_read_in_each_of_their_spellings() {
        let text = r#"
            # a comment with "quotes" and {braces}
            name: "a" 'b'  ; platform : 'onnx\x72untime\137onnx'
            input [ { name: "x", dims: [ 3, -1, 224 ] }, { name: "y" } ]
            input: < name: "z" dims: 1 dims: 2 >
            version_policy: { all {} }  flag: true
            [some.extension] { x: 1 }
        "#;
        let message = Message::parse(text).unwrap();
        assert_eq!((message.text("name"), message.text("platform")), ("ab", "onnxruntime_onnx"));
        let inputs: Vec<_> = message.messages("input").map(|input| input.text("name")).collect();
        assert_eq!(inputs, ["x", "y", "z"]);
        let dims: Vec<_> = message.messages("input").map(|input| input.numbers("dims").unwrap()).collect();
        assert_eq!(dims, [vec![3, -1, 224], vec![], vec![1, 2]]);
        assert!(message.messages("version_policy").next().unwrap().last("all").is_some());
        assert_eq!((message.word("flag"), message.word("name"), message.text("none")), ("true", "", ""));
    }

    #[test]
    fn what_is_no_text_format_is_an_error_with_its_line() {
        let deep = "a {".repeat(MAX_DEPTH + 2);
        for (text, line, says) in [
            ("name \"x\"", 1, "a colon or a brace"),
            ("a: 1\n\nb: \"x\nc: 2", 3, "does not end on its line"),
            ("a {\nb: 1", 2, "before }"),
            ("a: [1,\n2", 2, "a list does not end"),
            ("a: \"\\q\"", 1, "no escape"),
            ("a: \"\\400\"", 1, "no byte"),
            ("a: \"\\xff\"", 1, "UTF-8"),
            ("a: }", 1, "a value was expected"),
            ("é: 1", 1, "a field's name was expected"),
            ("[x", 1, "in brackets"),
            (deep.as_str(), 1, "nested"),
        ] {
            let error = Message::parse(text).unwrap_err();
            assert!(error.line == line && error.problem.contains(says), "{text:?}: {error}");
        }
        assert!(Message::parse("dims: x").unwrap().numbers("dims").unwrap_err().contains("x is no whole number"));
    }
}
