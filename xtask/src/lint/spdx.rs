//! SPDX licence expressions: can this crate be used under licences that we allow?

use anyhow::{Result, bail};

/// Whether an expression can be met with allowed licences alone. `AND` binds tighter than `OR`; the
/// old `MIT/Apache-2.0` means `OR`.
///
/// # Errors
/// When it is no such expression.
pub fn allowed(expression: &str, allow: &[String]) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { tokens: spaced.split_whitespace().collect(), at: 0, allow };
    let answer = parser.any()?;
    if parser.at != parser.tokens.len() {
        bail!("`{expression}` is no licence expression");
    }
    Ok(answer)
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    allow: &'a [String],
}

impl Parser<'_> {
    fn any(&mut self) -> Result<bool> {
        let mut answer = self.all()?;
        while self.take("OR") {
            answer |= self.all()?;
        }
        Ok(answer)
    }

    fn all(&mut self) -> Result<bool> {
        let mut answer = self.one()?;
        while self.take("AND") {
            answer &= self.one()?;
        }
        Ok(answer)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let answer = self.any()?;
            if !self.take(")") {
                bail!("a bracket is not closed");
            }
            return Ok(answer);
        }
        let mut name = self.next()?.to_owned();
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.next()?);
        }
        Ok(self.allow.contains(&name))
    }

    fn take(&mut self, token: &str) -> bool {
        let here = self.tokens.get(self.at) == Some(&token);
        self.at += usize::from(here);
        here
    }

    fn next(&mut self) -> Result<&str> {
        match self.tokens.get(self.at) {
            Some(token) if !matches!(*token, "(" | ")" | "AND" | "OR" | "WITH") => {
                self.at += 1;
                Ok(token)
            }
            _ => bail!("a licence is missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions_are_met_by_allowed_licences_only() {
        let allow =
            ["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        let check = |expression, expected| {
            assert_eq!(allowed(expression, &allow).expect(expression), expected, "{expression}");
        };
        check("MIT", true);
        check("GPL-3.0-only", false);
        check("GPL-3.0-only OR MIT", true);
        check("MIT/GPL-3.0-only", true);
        check("ISC AND (Apache-2.0 OR GPL-3.0-only)", true);
        check("ISC AND GPL-3.0-only OR GPL-2.0-only", false);
        check("GPL-2.0-only OR ISC AND MIT", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("Apache-2.0 WITH Other-exception", false);
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for expression in ["", "MIT OR", "(MIT", "MIT ISC", "AND"] {
            assert!(allowed(expression, &["MIT".to_owned()]).is_err(), "{expression:?}");
        }
    }
}
