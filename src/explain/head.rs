//! The model's head: which output is explained, what its values mean, and which of them is the score of a target.

use tch::{Device, Kind, Tensor};

use crate::model::graph::Graph;
use crate::model::node::ValueId;
use crate::model::{Metadata, ModelError};

use super::ExplainError;
use super::ranking::highest;

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    /// Over all classes.
    Softmax,
}

impl Activation {
    /// The probability of each class of one row of logits, as a function of the class's index.
    fn probabilities(self, logits: &[f32]) -> impl Fn(usize) -> f32 {
        match self {
            Activation::Softmax => {
                let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exponential = move |logit: f32| f64::from(logit - highest).exp();
                let sum: f64 = logits.iter().map(|&logit| exponential(logit)).sum();
                move |class: usize| (exponential(logits[class]) / sum) as f32
            }
        }
    }
}

/// One class as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    pub class_index: u32,
    pub logit: f32,
    /// 0 to 1.
    pub probability: f32,
}

/// A classifier's head: its output holds logits `[N, classes]`, and the score of a class is its logit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    output: String,
    activation: Activation,
}

impl Head {
    /// The head of a model.
    pub fn of(metadata: &Metadata) -> Self {
        Head { output: metadata.logits.clone(), activation: Activation::Softmax }
    }

    /// The value of the graph that holds the logits.
    pub(super) fn value(&self, graph: &Graph) -> Result<ValueId, ModelError> {
        graph.score(Some(&self.output))
    }

    /// The logits in host memory, `[N, classes]` of f32.
    ///
    /// # Errors
    /// [`ExplainError::Output`] when the output does not have two dimensions.
    pub(super) fn logits(&self, output: &Tensor) -> Result<Tensor, ExplainError> {
        let logits = output.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        if logits.dim() != 2 {
            return Err(ExplainError::Output { shape: logits.size() });
        }
        Ok(logits)
    }

    /// The score of a class, from one row of logits.
    pub(super) fn score(&self, logits: &[f32], class: u32) -> f32 {
        logits[class as usize]
    }

    /// The gradient of the sum of the rows' scores with respect to the output: of the output's shape, type and device,
    /// 1 at the score of each row's class and 0 elsewhere. A row without a class takes no part.
    pub(super) fn seed(&self, output: &Tensor, classes: &[Option<u32>]) -> Result<Tensor, ExplainError> {
        let [rows, count] = *output.size().as_slice() else {
            return Err(ExplainError::Output { shape: output.size() });
        };
        let mut seed = vec![0f32; (rows * count) as usize];
        for (row, class) in classes.iter().enumerate() {
            if let Some(class) = *class {
                seed[row * count as usize + class as usize] = 1.0;
            }
        }
        Ok(Tensor::f_from_slice(&seed)?
            .f_view([rows, count])?
            .f_to_device(output.device())?
            .f_to_kind(output.f_kind()?)?)
    }

    /// The `count` highest classes of one row of logits, the highest first; of equal ones, the lower index first.
    pub fn predictions(&self, logits: &[f32], count: usize) -> Vec<Prediction> {
        let probability = self.activation.probabilities(logits);
        let prediction = |index: usize| Prediction {
            class_index: index as u32,
            logit: logits[index],
            probability: probability(index),
        };
        highest(logits, count).into_iter().map(prediction).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { output: "logits".to_owned(), activation: Activation::Softmax }
    }

    #[test]
    fn the_highest_logit_comes_first_and_probabilities_are_a_softmax() {
        let top = head().predictions(&[0.0, 1.0, 3.0, 2.0], 2);
        assert_eq!((top[0].class_index, top[1].class_index), (2, 3));
        let sum: f64 = [0.0f64, 1.0, 3.0, 2.0].iter().map(|v| v.exp()).sum();
        assert!((f64::from(top[0].probability) - 3f64.exp() / sum).abs() < 1e-6);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let top = head().predictions(&[1000.0, 999.0], 2);
        assert!((top[0].probability - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn more_predictions_than_classes_gives_all_classes() {
        assert_eq!(head().predictions(&[0.0, 1.0], 5).len(), 2);
        assert!(head().predictions(&[0.0, 1.0], 0).is_empty());
    }

    #[test]
    fn the_seed_selects_the_score_of_each_row() {
        let output = Tensor::from_slice(&[0.5f32, 1.5, 2.5, 3.5, 4.5, 5.5]).view([3, 2]).to_kind(Kind::Double);
        let (head, classes) = (head(), [Some(1), None, Some(0)]);
        let seed = head.seed(&output, &classes).unwrap();
        assert_eq!((seed.kind(), seed.size()), (Kind::Double, output.size()));
        let selected = Vec::<f64>::try_from((&seed * &output).sum_dim_intlist([1i64].as_slice(), false, None)).unwrap();
        let logits = head.logits(&output).unwrap();
        for (row, class) in classes.iter().enumerate() {
            let row_logits = Vec::<f32>::try_from(logits.get(row as i64)).unwrap();
            let score = class.map_or(0.0, |class| head.score(&row_logits, class));
            assert_eq!(selected[row], f64::from(score), "row {row}");
        }
    }

    #[test]
    fn an_output_that_is_not_rows_of_classes_is_refused_with_its_shape() {
        let output = Tensor::zeros([1, 2, 3], (Kind::Float, Device::Cpu));
        let error = head().logits(&output).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 3]") && error.contains("[N, classes]"), "{error}");
        assert!(matches!(head().seed(&output, &[]), Err(ExplainError::Output { .. })));
    }
}
