//! Natural order of names: digits inside a name compare as numbers.

use std::cmp::Ordering;

/// Compares two names in natural order: `frame9.jpg` comes before `frame10.jpg`. Names whose numbers are equal compare
/// as text, so more leading zeros come first.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut rest_a, mut rest_b) = (a, b);
    loop {
        let (part_a, part_b) = (part(rest_a), part(rest_b));
        if part_a.is_empty() || part_b.is_empty() {
            return part_a.len().cmp(&part_b.len()).then_with(|| a.cmp(b));
        }
        let ordering = match (number(part_a), number(part_b)) {
            (Some(a), Some(b)) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
            _ => part_a.cmp(part_b),
        };
        if ordering != Ordering::Equal {
            return ordering;
        }
        (rest_a, rest_b) = (&rest_a[part_a.len()..], &rest_b[part_b.len()..]);
    }
}

/// The longest prefix that is all digits, or has no digit.
fn part(text: &str) -> &str {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    &text[..end]
}

/// The digits of a number without leading zeros, so that the longer of two numbers is the greater.
fn number(part: &str) -> Option<&str> {
    part.starts_with(|c: char| c.is_ascii_digit()).then(|| part.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_compare_as_numbers() {
        let mut names = ["f10.png", "f9.png", "f1b.png", "f1.png", "f007.png", "f7.png", "a", "f", "b2c3", "b2c20"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "b2c3", "b2c20", "f", "f1.png", "f1b.png", "f007.png", "f7.png", "f9.png", "f10.png"]);
    }

    #[test]
    fn numbers_longer_than_any_integer_are_compared() {
        let (small, large) = (format!("1{}", "0".repeat(40)), format!("2{}", "0".repeat(40)));
        assert_eq!(natural(&small, &large), Ordering::Less);
        assert_eq!(natural(&small, &small), Ordering::Equal);
    }
}
