//! The sizes that the axes of a model's input may have.

use std::fmt;

/// The size of an axis of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    Fixed(i64),
    /// `example` is the size that the model was exported with.
    Dynamic {
        example: i64,
        sizes: Sizes,
    },
}

/// The sizes `step · v + offset` of a variable v from `least` to `most`. A size is at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Axes with the same variable vary together.
    pub variable: u32,
    /// At least 1.
    pub step: i64,
    pub offset: i64,
    pub least: i64,
    /// `None`: no bound.
    pub most: Option<i64>,
}

impl Sizes {
    /// Any size from 1, of a variable of its own.
    pub fn any(variable: u32) -> Sizes {
        Sizes { variable, step: 1, offset: 0, least: 1, most: None }
    }

    /// The variable's value for a size; `None` when the size is not allowed.
    pub fn value_of(&self, size: i64) -> Option<i64> {
        let distance = size.checked_sub(self.offset)?;
        let value = distance / self.step;
        let allowed =
            size >= 1 && distance % self.step == 0 && value >= self.least && self.most.is_none_or(|most| value <= most);
        allowed.then_some(value)
    }

    /// The size of a value of the variable; `None` where it overflows.
    fn at(&self, value: i64) -> Option<i64> {
        self.step.checked_mul(value)?.checked_add(self.offset)
    }

    /// The variable's smallest value whose size is at least 1.
    pub fn first_value(&self) -> i64 {
        let distance = 1i64.saturating_sub(self.offset);
        let first = distance.div_euclid(self.step) + i64::from(distance.rem_euclid(self.step) != 0);
        first.max(self.least)
    }

    /// The smallest size.
    pub fn smallest(&self) -> i64 {
        self.at(self.first_value()).unwrap_or(i64::MAX)
    }

    /// The largest size; `None`: no bound.
    pub fn largest(&self) -> Option<i64> {
        self.most.and_then(|most| self.at(most))
    }
}

impl Dimension {
    pub fn example(self) -> i64 {
        match self {
            Dimension::Fixed(size) | Dimension::Dynamic { example: size, .. } => size,
        }
    }

    /// The size of a fixed dimension.
    pub fn fixed(self) -> Option<i64> {
        match self {
            Dimension::Fixed(size) => Some(size),
            Dimension::Dynamic { .. } => None,
        }
    }

    pub fn smallest(self) -> i64 {
        match self {
            Dimension::Fixed(size) => size,
            Dimension::Dynamic { sizes, .. } => sizes.smallest(),
        }
    }

    /// The largest size; `None`: no bound.
    pub fn largest(self) -> Option<i64> {
        match self {
            Dimension::Fixed(size) => Some(size),
            Dimension::Dynamic { sizes, .. } => sizes.largest(),
        }
    }

    /// Whether the axis may have this size, when nothing is known of the other axes.
    pub fn takes(self, size: i64) -> bool {
        match self {
            Dimension::Fixed(fixed) => size == fixed,
            Dimension::Dynamic { sizes, .. } => sizes.value_of(size).is_some(),
        }
    }
}

/// Whether an input may have these sizes: each axis takes its size, and axes of the same variable agree.
pub fn takes<const N: usize>(dimensions: [Dimension; N], sizes: [i64; N]) -> bool {
    (0..N).all(|axis| match dimensions[axis] {
        Dimension::Fixed(fixed) => sizes[axis] == fixed,
        Dimension::Dynamic { sizes: own, .. } => own.value_of(sizes[axis]).is_some_and(|value| {
            dimensions[..axis].iter().zip(sizes).all(|(other, size)| match other {
                Dimension::Dynamic { sizes: other, .. } if other.variable == own.variable => {
                    other.value_of(size) == Some(value)
                }
                _ => true,
            })
        }),
    })
}

/// The heights and widths that an input may have, in words: "a height of 32 to 128, the same width".
pub fn described(height: Dimension, width: Dimension) -> String {
    let tied = match (height, width) {
        (Dimension::Dynamic { sizes: height, .. }, Dimension::Dynamic { sizes: width, .. })
            if height.variable == width.variable =>
        {
            Some((height, width))
        }
        _ => None,
    };
    let width = match tied {
        Some((height, width)) if height == width => "the same width".to_owned(),
        Some((height, width)) => {
            format!("a width of {} where the height is {}", Linear(width), Linear(height))
        }
        None => side(width, "width"),
    };
    format!("{}, {width}", side(height, "height"))
}

/// The shapes that an input, `[N, C, H, W]`, may have: "[any batch, 3, any height, any width]".
pub fn described_input([batch, channels, height, width]: [Dimension; 4]) -> String {
    let batch = match (batch, batch.largest()) {
        (Dimension::Fixed(size), _) => size.to_string(),
        (_, None) => "any batch".to_owned(),
        (_, Some(largest)) => format!("a batch of 1 to {largest}"),
    };
    format!("[{batch}, {}, {}]", channels.example(), described(height, width))
}

fn side(dimension: Dimension, name: &str) -> String {
    let sizes = match dimension {
        Dimension::Fixed(size) => return size.to_string(),
        Dimension::Dynamic { sizes, .. } => sizes,
    };
    let range = match (sizes.smallest(), sizes.largest()) {
        (smallest, None) if smallest <= sizes.step => None,
        (smallest, None) => Some(format!("at least {smallest}")),
        (smallest, Some(largest)) => Some(format!("{smallest} to {largest}")),
    };
    match (sizes.step, range) {
        (1, None) => format!("any {name}"),
        (1, Some(range)) => format!("a {name} of {range}"),
        (step, range) => {
            let rule = if sizes.offset % step == 0 {
                format!("a {name} that is a multiple of {step}")
            } else {
                format!("a {name} of {}", Linear(sizes))
            };
            match range {
                None => rule,
                Some(range) => format!("{rule}, {range}"),
            }
        }
    }
}

/// `4·k + 1`, with any whole k.
struct Linear(Sizes);

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Linear(sizes) = self;
        match sizes.step {
            1 => f.write_str("k")?,
            step => write!(f, "{step}·k")?,
        }
        match sizes.offset {
            0 => Ok(()),
            offset if offset < 0 => write!(f, " - {}", offset.unsigned_abs()),
            offset => write!(f, " + {offset}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dynamic(variable: u32, step: i64, offset: i64, least: i64, most: Option<i64>) -> Dimension {
        Dimension::Dynamic { example: 64, sizes: Sizes { variable, step, offset, least, most } }
    }

    #[test]
    fn a_range_and_a_step_decide_which_sizes_are_taken() {
        let taken = |dimension: Dimension| (-3..20).filter(|&size| dimension.takes(size)).collect::<Vec<i64>>();
        assert_eq!(taken(dynamic(0, 1, 0, 3, Some(6))), [3, 4, 5, 6]);
        assert_eq!(taken(dynamic(0, 4, 0, 1, None)), [4, 8, 12, 16]);
        assert_eq!(taken(dynamic(0, 4, 1, 0, Some(3))), [1, 5, 9, 13]);
        assert_eq!(taken(dynamic(0, 4, -2, 0, None)), [2, 6, 10, 14, 18], "a size is at least 1");
        assert_eq!(taken(Dimension::Fixed(7)), [7]);
        assert!(!dynamic(0, 1, i64::MIN, 0, None).takes(5));
    }

    #[test]
    fn the_smallest_and_the_largest_size_are_taken_and_their_neighbours_are_not() {
        for step in [1, 3, 4] {
            for offset in [-5, -2, 0, 1, 7] {
                for least in [-1, 0, 1, 5] {
                    let dimension = dynamic(0, step, offset, least, Some(least + 9));
                    let taken: Vec<i64> = (-50..100).filter(|&size| dimension.takes(size)).collect();
                    assert_eq!(taken.first(), Some(&dimension.smallest()), "{dimension:?}");
                    assert_eq!(taken.last().copied(), dimension.largest(), "{dimension:?}");
                }
            }
        }
    }

    #[test]
    fn axes_of_one_variable_vary_together() {
        let square = [dynamic(3, 1, 0, 1, None); 2];
        assert!(takes(square, [5, 5]) && !takes(square, [5, 6]));
        let double = [dynamic(3, 1, 0, 1, None), dynamic(3, 2, 1, 1, None)];
        assert!(takes(double, [5, 11]) && !takes(double, [5, 10]) && !takes(double, [5, 13]));
        let free = [dynamic(3, 1, 0, 1, None), dynamic(4, 1, 0, 1, None)];
        assert!(takes(free, [5, 6]) && !takes(free, [5, 0]));
    }

    #[test]
    fn the_allowed_sizes_are_said_in_words() {
        let cases = [
            (dynamic(0, 1, 0, 1, None), dynamic(1, 1, 0, 1, None), "any height, any width"),
            (dynamic(0, 1, 0, 32, Some(128)), Dimension::Fixed(64), "a height of 32 to 128, 64"),
            (
                dynamic(0, 4, 0, 1, None),
                dynamic(1, 4, 4, 7, None),
                "a height that is a multiple of 4, a width that is a multiple of 4, at least 32",
            ),
            (
                dynamic(0, 4, 1, 0, Some(3)),
                dynamic(1, 1, 0, 9, None),
                "a height of 4·k + 1, 1 to 13, a width of at least 9",
            ),
            (dynamic(0, 1, 0, 1, None), dynamic(0, 1, 0, 1, None), "any height, the same width"),
            (
                dynamic(0, 1, 0, 1, None),
                dynamic(0, 2, -1, 1, None),
                "any height, a width of 2·k - 1 where the height is k",
            ),
        ];
        for (height, width, words) in cases {
            assert_eq!(described(height, width), words);
        }
    }
}
