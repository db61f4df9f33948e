//! The sizes of an input, from an exported program's expressions and range constraints.

use std::collections::BTreeMap;

use super::document::{Range, SizeJson};
use crate::model::ModelError;
use crate::model::dimension::{Dimension, Sizes};

/// PyTorch's symbols are assumed to be at least 2, because 0 and 1 are special to its tracer. Programs run with 1 all
/// the same, so such a bound is not one.
const ASSUMED_LEAST: i64 = 2;

/// Longest expression that is read, in bytes, and deepest nesting.
const MAX_EXPRESSION_BYTES: usize = 1000;
const MAX_DEPTH: u32 = 16;

/// The dimensions of the input `name`. Symbols that several sizes share are one variable. An expression that is not
/// linear in one symbol allows any size.
pub fn dimensions(
    name: &str,
    sizes: &[SizeJson],
    ranges: &BTreeMap<String, Range>,
) -> Result<Vec<Dimension>, ModelError> {
    let (mut symbols, count) = (Vec::<String>::new(), sizes.len());
    let mut dimensions = sizes
        .iter()
        .enumerate()
        .map(|(axis, size)| {
            let (expression, hint) = match size {
                SizeJson::Int(fixed) => return Ok(Dimension::Fixed(*fixed)),
                SizeJson::Expression { expr_str, hint } => (expr_str, hint),
            };
            let example = hint
                .and_then(|hint| hint.as_int)
                .ok_or_else(|| ModelError::malformed("graph", format!("a size of input {name} has no example")))?;
            let linear = expression.as_deref().and_then(parse);
            let sizes = linear.and_then(|Linear { symbol, step, offset }| {
                let symbol = symbol?;
                let range = ranges.get(&symbol).copied().unwrap_or_default();
                let variable = symbols.iter().position(|known| *known == symbol).unwrap_or_else(|| {
                    symbols.push(symbol);
                    symbols.len() - 1
                });
                let least = range.min_val.filter(|&least| least > ASSUMED_LEAST).unwrap_or(1);
                let sizes = Sizes { variable: variable as u32, step, offset, least, most: range.max_val };
                (step >= 1).then_some(sizes)
            });
            // Symbols, of which there are no more than axes, have the lower numbers.
            let sizes = sizes.unwrap_or_else(|| Sizes::any((count + axis) as u32));
            if sizes.value_of(example).is_none() {
                return Err(ModelError::malformed(
                    "graph",
                    format!("the example of axis {axis} of input {name}, {example}, is not in its own range"),
                ));
            }
            Ok(Dimension::Dynamic { example, sizes })
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Each variable begins where all of its axes have a size of at least 1.
    let firsts: Vec<(u32, i64)> = dimensions
        .iter()
        .filter_map(|dimension| match dimension {
            Dimension::Dynamic { sizes, .. } => Some((sizes.variable, sizes.first_value())),
            Dimension::Fixed(_) => None,
        })
        .collect();
    for dimension in &mut dimensions {
        if let Dimension::Dynamic { sizes, .. } = dimension {
            let own = firsts.iter().filter(|(variable, _)| *variable == sizes.variable);
            sizes.least = own.map(|(_, first)| *first).max().unwrap_or(sizes.least);
        }
    }
    Ok(dimensions)
}

/// `step · symbol + offset`.
#[derive(Debug, Clone, PartialEq)]
struct Linear {
    /// `None`: the expression is the number `offset`.
    symbol: Option<String>,
    step: i64,
    offset: i64,
}

impl Linear {
    fn number(offset: i64) -> Linear {
        Linear { symbol: None, step: 0, offset }
    }

    fn plus(self, other: Linear) -> Option<Linear> {
        let symbol = match (self.symbol, other.symbol) {
            (Some(one), Some(two)) if one != two => return None,
            (one, two) => one.or(two),
        };
        Some(Linear {
            symbol,
            step: self.step.checked_add(other.step)?,
            offset: self.offset.checked_add(other.offset)?,
        })
    }

    fn times(self, other: Linear) -> Option<Linear> {
        let (linear, factor) = match (&self.symbol, &other.symbol) {
            (_, None) => (self, other.offset),
            (None, _) => (other, self.offset),
            _ => return None,
        };
        Some(Linear {
            step: linear.step.checked_mul(factor)?,
            offset: linear.offset.checked_mul(factor)?,
            symbol: linear.symbol,
        })
    }
}

/// Reads a linear expression as SymPy writes it, either as constructors
/// (`Add(Mul(Integer(4), Symbol('s0', positive=True)), Integer(1))`) or in short (`4*s0 + 1`). `None` for any other.
fn parse(text: &str) -> Option<Linear> {
    if text.len() > MAX_EXPRESSION_BYTES {
        return None;
    }
    let mut reader = Reader { rest: text, depth: 0 };
    let linear = reader.sum()?;
    reader.rest.trim().is_empty().then_some(linear)
}

struct Reader<'t> {
    rest: &'t str,
    depth: u32,
}

impl<'t> Reader<'t> {
    fn take(&mut self, token: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(token)?;
        Some(())
    }

    /// The characters that `allowed` accepts; at least one.
    fn run(&mut self, allowed: impl Fn(char) -> bool) -> Option<&'t str> {
        let text = self.rest.trim_start();
        let end = text.find(|c| !allowed(c)).unwrap_or(text.len());
        let (run, rest) = text.split_at(end);
        self.rest = rest;
        (!run.is_empty()).then_some(run)
    }

    fn sum(&mut self) -> Option<Linear> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut sum = self.product()?;
        loop {
            sum = if self.take('+').is_some() {
                sum.plus(self.product()?)?
            } else if self.take('-').is_some() {
                sum.plus(self.product()?.times(Linear::number(-1))?)?
            } else {
                self.depth -= 1;
                return Some(sum);
            };
        }
    }

    fn product(&mut self) -> Option<Linear> {
        let mut product = self.factor()?;
        while self.take('*').is_some() {
            product = product.times(self.factor()?)?;
        }
        Some(product)
    }

    fn factor(&mut self) -> Option<Linear> {
        if self.take('-').is_some() {
            let digits = self.run(|c| c.is_ascii_digit())?;
            return Some(Linear::number(digits.parse::<i64>().ok()?.checked_neg()?));
        }
        if self.take('(').is_some() {
            let inner = self.sum()?;
            self.take(')')?;
            return Some(inner);
        }
        let word = self.run(|c| c.is_ascii_alphanumeric() || c == '_')?;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(Linear::number(word.parse().ok()?));
        }
        if self.take('(').is_none() {
            return Some(Linear { symbol: Some(word.to_owned()), step: 1, offset: 0 });
        }
        match word {
            "Symbol" => {
                let quote = if self.take('\'').is_some() { '\'' } else { self.take('"').map(|()| '"')? };
                let name = self.run(|c| c.is_ascii_alphanumeric() || c == '_')?;
                self.take(quote)?;
                // The symbol's assumptions.
                self.run(|c| c.is_ascii_alphanumeric() || "_=, ".contains(c));
                self.take(')')?;
                Some(Linear { symbol: Some(name.to_owned()), step: 1, offset: 0 })
            }
            "Integer" => {
                let number = self.sum().filter(|number| number.symbol.is_none())?;
                self.take(')')?;
                Some(number)
            }
            "Add" | "Mul" => {
                let mut whole = self.sum()?;
                while self.take(',').is_some() {
                    let next = self.sum()?;
                    whole = if word == "Add" { whole.plus(next)? } else { whole.times(next)? };
                }
                self.take(')')?;
                Some(whole)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dimension;

    fn linear(symbol: &str, step: i64, offset: i64) -> Option<Linear> {
        Some(Linear { symbol: Some(symbol.to_owned()), step, offset })
    }

    #[test]
    fn linear_expressions_are_read_in_both_spellings() {
        assert_eq!(parse("Symbol('s77', positive=True, integer=True)"), linear("s77", 1, 0));
        assert_eq!(parse("Mul(Integer(4), Symbol('s16', positive=True, integer=True))"), linear("s16", 4, 0));
        assert_eq!(parse("Add(Symbol('s16', integer=True), Integer(-29))"), linear("s16", 1, -29));
        assert_eq!(parse("Add(Mul(Integer(2), Symbol('_h')), Integer(1))"), linear("_h", 2, 1));
        assert_eq!(parse("s0"), linear("s0", 1, 0));
        assert_eq!(parse("4*s0"), linear("s0", 4, 0));
        assert_eq!(parse("2*_h - 1"), linear("_h", 2, -1));
        assert_eq!(parse("3*(s1 + 2) + s1"), linear("s1", 4, 6));
        assert_eq!(parse("64"), Some(Linear::number(64)));
    }

    #[test]
    fn other_expressions_are_not_read() {
        let deep = format!("{}s0{}", "(".repeat(50), ")".repeat(50));
        let long = format!("s0{}", " + 0".repeat(300));
        let texts = ["", "s0*s1", "s0 + s1", "s0**2", "Max(1, s0)", "FloorDiv(Symbol('s0'), Integer(2))", "4*", "4 s0"];
        for text in texts.into_iter().chain([deep.as_str(), long.as_str(), "9223372036854775807*s0*2"]) {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    fn symbolic(text: &str, example: i64) -> SizeJson {
        serde_json::from_value(serde_json::json!({"as_expr": {"expr_str": text, "hint": {"as_int": example}}})).unwrap()
    }

    fn ranges(all: serde_json::Value) -> BTreeMap<String, Range> {
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_program_takes_the_sizes_of_its_constraints() {
        let ranges = ranges(serde_json::json!({
            "s1": {"min_val": 2, "max_val": null},
            "s16": {"min_val": 2, "max_val": 40},
            "s53": {"min_val": 32, "max_val": 128},
        }));
        let [batch, height, width] = dimensions(
            "x",
            &[symbolic("Symbol('s1')", 2), symbolic("Mul(Integer(4), Symbol('s16'))", 64), symbolic("s53", 64)],
            &ranges,
        )
        .unwrap()[..] else {
            panic!("three axes")
        };
        assert!(batch.takes(1) && batch.takes(1_000_000), "an assumed minimum of 2 is no bound");
        assert_eq!((height.smallest(), height.largest()), (4, Some(160)));
        assert_eq!((width.smallest(), width.largest()), (32, Some(128)));
        assert!(height.takes(60) && !height.takes(61) && !height.takes(164));
        assert!(dimension::takes([batch, height, width], [3, 60, 77]));
    }

    #[test]
    fn axes_that_share_a_symbol_vary_together() {
        let sizes = [symbolic("s0", 64), symbolic("s0", 64), symbolic("Max(1, s2)", 9), symbolic("Max(1, s2)", 9)];
        let [height, width, one, two] = dimensions("x", &sizes, &BTreeMap::new()).unwrap()[..] else {
            panic!("four axes")
        };
        assert!(dimension::takes([height, width], [7, 7]) && !dimension::takes([height, width], [7, 8]));
        assert!(dimension::takes([one, two], [7, 8]), "what is not understood allows any size");
        let sizes = [symbolic("s0", 64), symbolic("s0 - 3", 61)];
        let [height, width] = dimensions("x", &sizes, &BTreeMap::new()).unwrap()[..] else { panic!("two axes") };
        assert_eq!((height.smallest(), width.smallest()), (4, 1), "both begin with the same value");
    }

    #[test]
    fn an_example_outside_its_own_range_is_malformed() {
        let ranges = ranges(serde_json::json!({"s0": {"min_val": 32, "max_val": 128}}));
        let error = dimensions("x", &[symbolic("s0", 16)], &ranges).unwrap_err().to_string();
        assert!(error.contains("16") && error.contains("range"), "{error}");
        assert!(dimensions("x", &[symbolic("4*s0", 130)], &BTreeMap::new()).is_err());
    }

    #[test]
    fn bounds_that_are_no_numbers_of_use_are_no_bounds() {
        let ranges = ranges(serde_json::json!({
            "s0": {"min_val": null, "max_val": 9223372036854775806i64},
            "s1": {"min_val": {"odd": true}, "max_val": "int_oo"},
        }));
        for text in ["s0", "s1"] {
            let [dimension] = dimensions("x", &[symbolic(text, 5)], &ranges).unwrap()[..] else { panic!("one axis") };
            assert_eq!((dimension.smallest(), dimension.largest()), (1, None));
        }
    }
}
