//! Whether the model's prediction is the one that another program had of the same frame.

use super::ExplainError;
use super::head::{Head, Prediction};
use super::ranking::highest;

/// What another program predicted of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// Its top class.
    pub class_index: u32,
    /// The probability of that class, 0 to 1. `None`: classes alone are compared.
    pub probability: Option<f32>,
    /// How far probabilities may be apart, 0 to 1.
    pub tolerance: f32,
}

impl Expected {
    /// The tolerance unless a request names one.
    ///
    /// Rounding moves a probability by less than 0.001 (other kernels, TF32, float16), another decoder or resizer by a
    /// few thousandths; other weights, another order of the channels or a missing normalisation by more than 0.01, as a
    /// rule, on the first frames that are not perfectly clear.
    pub const DEFAULT_TOLERANCE: f32 = 0.01;
}

/// A model's prediction beside the expected one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    pub agrees: bool,
    pub expected: Expected,
    /// The model's own top class.
    pub top: Prediction,
    /// The expected class, as the model sees it.
    pub own: Prediction,
    /// Whether probabilities were compared: one was expected, and the model has them.
    pub compares_probabilities: bool,
}

impl Head {
    /// Compares one row of logits with what was expected of it. Both agree when
    ///
    /// - the expected class is the top one, or its probability is at least `1 - tolerance` of the top one's, so that
    ///   rounding does not decide between two classes that are equally probable; without probabilities, its logit is
    ///   the highest;
    /// - and, where probabilities are compared, those of the expected class differ by `tolerance` at most.
    ///
    /// # Errors
    /// [`ExplainError::Expected`] for a class beyond the last.
    pub fn agreement(&self, logits: &[f32], expected: Expected) -> Result<Agreement, ExplainError> {
        let Expected { class_index, probability, tolerance } = expected;
        let Some(highest) = highest(logits, 1).first().copied().filter(|_| (class_index as usize) < logits.len())
        else {
            return Err(ExplainError::Expected { class: class_index, classes: logits.len() as u32 });
        };
        let [top, own] = self.predicted(logits, [highest, class_index as usize]);
        let is_top = match self.has_probabilities() {
            true => own.probability >= top.probability * (1.0 - tolerance),
            false => own.logit >= top.logit,
        };
        let probability = probability.filter(|_| self.has_probabilities());
        let is_near = probability.is_none_or(|probability| (own.probability - probability).abs() <= tolerance);
        let compares_probabilities = probability.is_some();
        Ok(Agreement { agrees: is_top && is_near, expected, top, own, compares_probabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Activation;

    /// Of three classes, logits whose softmax is 0.6, 0.3 and 0.1.
    fn logits() -> [f32; 3] {
        [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()]
    }

    fn agrees(activation: Activation, logits: &[f32], class_index: u32, probability: Option<f32>) -> bool {
        let expected = Expected { class_index, probability, tolerance: 0.05 };
        Head::with(activation).agreement(logits, expected).expect("the class exists").agrees
    }

    #[test]
    fn the_same_class_agrees_and_its_probability_must_be_near() {
        for (class, probability, is_right) in [
            (0, None, true),
            (0, Some(0.6), true),
            (0, Some(0.56), true),
            (0, Some(0.64), true),
            (0, Some(0.5), false),
            (0, Some(0.7), false),
            (1, None, false),
            (1, Some(0.3), false),
            (2, Some(0.6), false),
        ] {
            assert_eq!(agrees(Activation::Softmax, &logits(), class, probability), is_right, "{class} {probability:?}");
        }
    }

    #[test]
    fn both_sides_are_told() {
        let expected = Expected { class_index: 1, probability: Some(0.9), tolerance: 0.05 };
        let agreement = Head::with(Activation::Softmax).agreement(&logits(), expected).expect("the class exists");
        assert_eq!((agreement.top.class_index, agreement.own.class_index), (0, 1));
        assert!((agreement.top.probability - 0.6).abs() < 1e-6 && (agreement.own.probability - 0.3).abs() < 1e-6);
        assert_eq!((agreement.agrees, agreement.compares_probabilities, agreement.expected), (false, true, expected));
    }

    #[test]
    fn of_two_classes_that_are_equally_probable_either_is_right_and_of_many_improbable_ones_none_is() {
        let tie = [0.50f32.ln(), 0.49f32.ln(), 0.01f32.ln()];
        assert!(agrees(Activation::Softmax, &tie, 1, None) && agrees(Activation::Softmax, &tie, 1, Some(0.5)));
        // The tolerance is of the top class's probability: here all are below it.
        let mut flat = [0.01f32.ln(); 100];
        flat[7] = 0.012f32.ln();
        assert!(agrees(Activation::Softmax, &flat, 7, None) && !agrees(Activation::Softmax, &flat, 8, None));
    }

    #[test]
    fn without_probabilities_classes_alone_are_compared() {
        let head = Head::with(Activation::None);
        let expected = Expected { class_index: 0, probability: Some(0.1), tolerance: 0.0 };
        let agreement = head.agreement(&[2.0, 1.0], expected).expect("the class exists");
        assert!(agreement.agrees && !agreement.compares_probabilities);
        assert!(!agrees(Activation::None, &[2.0, 1.9999], 1, None));
    }

    #[test]
    fn a_class_beyond_the_last_is_refused_with_the_number_of_classes() {
        let expected = Expected { class_index: 3, probability: None, tolerance: 0.01 };
        let error = Head::with(Activation::Softmax).agreement(&logits(), expected).expect_err("three classes");
        assert_eq!(error.to_string(), "class 3 does not exist: the model has 3 classes, 0 to 2");
    }
}
