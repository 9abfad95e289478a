//! Masks passwords in texts of unknown format.

/// Replaces the value after each word `password` by `***`. A value in quotes ends at the closing
/// quote, any other value at the next separator.
pub(super) fn without_passwords(text: &str) -> String {
    const WORD: &str = "password";
    let lower = text.to_ascii_lowercase();
    let mut shown = String::new();
    let mut from = 0;
    while let Some(at) = lower[from..].find(WORD) {
        let word_end = from + at + WORD.len();
        let rest = &text[word_end..];
        let lead = rest.len()
            - rest
                .trim_start_matches(['"', '\'', '\\', ' ', '\t', '\r', '\n', ':', '=', '>'])
                .len();
        // A quote after the `:`, `=` or `>` opens the value. It is shown.
        let value = &rest[lead..];
        let end = match rest[..lead].chars().next_back() {
            Some(quote @ ('"' | '\'')) if rest[..lead].contains([':', '=', '>']) => {
                end_of_quoted(value, quote)
            }
            _ => value.find([',', '}', '&', '<', '"', '\n']).unwrap_or(value.len()),
        };
        shown.push_str(&text[from..word_end + lead]);
        shown.push_str("***");
        from = word_end + lead + end;
    }
    shown.push_str(&text[from..]);
    shown
}

fn end_of_quoted(value: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in value.char_indices() {
        if c == quote && !escaped {
            return at;
        }
        escaped = c == '\\' && !escaped;
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (text, shown) in [
            (r#"{"password": "a\"b", "x": 1"#, r#"{"password": "***", "x": 1"#),
            (
                r#""Password":"abc","userpassword":'d' "#,
                r#""Password":"***","userpassword":'***' "#,
            ),
            ("<Password>abc</Password>", "<Password>***</Password>***"),
            ("password=abc&x=1", "password=***&x=1"),
            ("PASSWORD: 123, x", "PASSWORD: ***, x"),
            (r#""password":"cut off"#, r#""password":"***"#),
            ("nothing ö", "nothing ö"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }
}
