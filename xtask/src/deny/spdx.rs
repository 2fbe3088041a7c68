//! SPDX licence expressions: whether what is allowed satisfies them.
//!
//! `OR`, `AND`, `WITH` and brackets, and the `/` that stood for `OR` in old manifests. `WITH`
//! binds its exception to the licence before it: the two are looked up as one.

use std::iter::Peekable;

type Words<'a> = Peekable<std::vec::IntoIter<&'a str>>;

/// Whether licences for which `allowed` holds satisfy the expression.
///
/// # Errors
/// A sentence where the expression is not one.
pub(super) fn satisfied(
    expression: &str,
    allowed: &dyn Fn(&str) -> bool,
) -> Result<bool, &'static str> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut words = words.into_iter().peekable();
    let verdict = or(&mut words, allowed, 0)?;
    if words.next().is_some() {
        return Err("something follows the end of the licence expression");
    }
    Ok(verdict)
}

/// Brackets deeper than this are nobody's licence.
const MAX_DEPTH: usize = 16;

fn or(
    words: &mut Words<'_>,
    allowed: &dyn Fn(&str) -> bool,
    depth: usize,
) -> Result<bool, &'static str> {
    let mut verdict = and(words, allowed, depth)?;
    while words.next_if_eq(&"OR").is_some() {
        // Not `||`: the right side has to be read either way.
        verdict |= and(words, allowed, depth)?;
    }
    Ok(verdict)
}

fn and(
    words: &mut Words<'_>,
    allowed: &dyn Fn(&str) -> bool,
    depth: usize,
) -> Result<bool, &'static str> {
    let mut verdict = one(words, allowed, depth)?;
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed, depth)?;
    }
    Ok(verdict)
}

fn one(
    words: &mut Words<'_>,
    allowed: &dyn Fn(&str) -> bool,
    depth: usize,
) -> Result<bool, &'static str> {
    match words.next() {
        None => Err("a licence is missing at the end of the expression"),
        Some("(") if depth < MAX_DEPTH => {
            let verdict = or(words, allowed, depth + 1)?;
            words.next_if_eq(&")").ok_or("a bracket is not closed")?;
            Ok(verdict)
        }
        Some("(") => Err("brackets are nested too deeply"),
        Some("OR" | "AND" | "WITH" | ")") => Err("an operator stands where a licence should"),
        Some(id) => match words.next_if_eq(&"WITH") {
            None => Ok(allowed(id)),
            Some(_) => {
                let exception = words.next().ok_or("WITH names no exception")?;
                Ok(allowed(&format!("{id} WITH {exception}")))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mit_and_llvm(expression: &str) -> Result<bool, &'static str> {
        satisfied(expression, &|id| ["MIT", "Apache-2.0 WITH LLVM-exception"].contains(&id))
    }

    #[test]
    fn or_needs_one_side_and_and_needs_both() {
        assert_eq!(with_mit_and_llvm("MIT"), Ok(true));
        assert_eq!(with_mit_and_llvm("GPL-2.0 OR MIT"), Ok(true));
        assert_eq!(with_mit_and_llvm("MIT/Apache-2.0"), Ok(true));
        assert_eq!(with_mit_and_llvm("MIT AND Unicode-3.0"), Ok(false));
        assert_eq!(with_mit_and_llvm("(MIT OR Apache-2.0) AND Unicode-3.0"), Ok(false));
        assert_eq!(with_mit_and_llvm("MIT OR Apache-2.0 AND Unicode-3.0"), Ok(true));
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        assert_eq!(with_mit_and_llvm("Apache-2.0 WITH LLVM-exception"), Ok(true));
        assert_eq!(with_mit_and_llvm("Apache-2.0"), Ok(false));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in ["", "MIT OR", "(MIT", "MIT MIT", "OR MIT", "MIT WITH", ")"] {
            assert!(with_mit_and_llvm(bad).is_err(), "{bad:?}");
        }
        assert!(with_mit_and_llvm(&"(".repeat(1000)).is_err());
    }
}
