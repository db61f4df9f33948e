//! The model's head: which output is explained, what its values mean, and which of them is the score of a target.

use tch::{Device, Kind, Tensor};

use crate::model::node::ValueId;
use crate::model::{Activation, Final, Metadata, Scores};

use super::ExplainError;
use super::ranking::highest;

/// The probability of each class of one row of logits, as a function of the class's index; 0 without an activation.
fn probabilities(activation: Activation, logits: &[f32]) -> impl Fn(usize) -> f32 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponential = move |logit: f32| f64::from(logit - highest).exp();
    let sum: f64 = logits.iter().map(|&logit| exponential(logit)).sum();
    move |class: usize| match activation {
        Activation::Softmax => (exponential(logits[class]) / sum) as f32,
        Activation::Sigmoid => (1.0 / (1.0 + (-f64::from(logits[class])).exp())) as f32,
        Activation::None => 0.0,
    }
}

/// One class as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    pub class_index: u32,
    pub logit: f32,
    /// 0 to 1; 0 when the model has no probabilities.
    pub probability: f32,
}

/// A classifier's head: the logits `[N, classes]`, where the score of a class is its logit. One logit `z` is two
/// classes: 0 with the score `z`, and 1 with the score `-z`; the other way round in a model that puts the probabilities
/// of both side by side in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    logits: ValueId,
    last: Final,
    activation: Activation,
}

impl Head {
    /// The head of a model.
    pub fn of(metadata: &Metadata) -> Self {
        let Scores { logits, last, activation, .. } = metadata.scores;
        Head { logits, last, activation }
    }

    /// A head of logits that become probabilities in this way.
    #[cfg(test)]
    pub(super) fn with(activation: Activation) -> Self {
        Head { logits: ValueId(0), last: Final::Logits, activation }
    }

    /// The value of the graph that holds the logits.
    pub(super) fn value(&self) -> ValueId {
        self.logits
    }

    /// The logits in host memory, `[N, classes]` of f32, from the value that holds them.
    ///
    /// # Errors
    /// [`ExplainError::Output`] when the value is not `[N, classes]`, `[N, classes, 1, 1]` or `[N]`.
    pub(super) fn logits(&self, value: &Tensor) -> Result<Tensor, ExplainError> {
        self.logits_there(&value.f_to_device(Device::Cpu)?)
    }

    /// As [`Head::logits`], on the device of the value.
    pub(super) fn logits_there(&self, value: &Tensor) -> Result<Tensor, ExplainError> {
        let (rows, count) = Self::shape(value)?;
        let logits = value.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([rows, count])?;
        if count != 1 {
            return Ok(logits);
        }
        let against = logits.f_neg()?;
        let classes = if self.spoken_for() == 0 { [&logits, &against] } else { [&against, &logits] };
        Ok(Tensor::f_cat(&classes, 1)?)
    }

    /// The class that a single logit speaks for.
    fn spoken_for(&self) -> u32 {
        match self.last {
            Final::SigmoidAndRest { class } => class,
            Final::Logits | Final::Softmax | Final::LogSoftmax | Final::Sigmoid => 0,
        }
    }

    /// Rows, and logits of each.
    fn shape(value: &Tensor) -> Result<(i64, i64), ExplainError> {
        match *value.size().as_slice() {
            [rows] => Ok((rows, 1)),
            [rows, count] | [rows, count, 1, 1] => Ok((rows, count)),
            _ => Err(ExplainError::Output { shape: value.size() }),
        }
    }

    /// What the model itself gives for these logits, `[N, values]`: its output, without axes of size 1.
    ///
    /// # Errors
    /// Those of the operators.
    pub fn output(&self, logits: &Tensor, values: i64) -> Result<Tensor, ExplainError> {
        let logits = logits.f_narrow(1, 0, values)?;
        Ok(match self.last {
            Final::Logits => logits,
            Final::Softmax => logits.f_softmax(1, None::<Kind>)?,
            Final::LogSoftmax => logits.f_log_softmax(1, None::<Kind>)?,
            Final::Sigmoid | Final::SigmoidAndRest { .. } => logits.f_sigmoid()?,
        })
    }

    /// The score of a class, from one row of logits.
    pub(super) fn score(&self, logits: &[f32], class: u32) -> f32 {
        logits[class as usize]
    }

    /// The gradient of the sum of the rows' scores with respect to the value that holds the logits: of its shape, type
    /// and device, 1 at the score of each row's class and 0 elsewhere; −1 for the class that one logit speaks against.
    /// A row without a class takes no part.
    pub(super) fn seed(&self, value: &Tensor, classes: &[Option<u32>]) -> Result<Tensor, ExplainError> {
        let (rows, count) = Self::shape(value)?;
        let mut seed = vec![0f32; (rows * count) as usize];
        for (row, class) in classes.iter().enumerate() {
            match *class {
                Some(class) if count == 1 => seed[row] = if class == self.spoken_for() { 1.0 } else { -1.0 },
                Some(class) => seed[row * count as usize + class as usize] = 1.0,
                None => {}
            }
        }
        Ok(Tensor::f_from_slice(&seed)?
            .f_view(value.size().as_slice())?
            .f_to_device(value.device())?
            .f_to_kind(value.f_kind()?)?)
    }

    /// As [`Head::seed`], for classes in a tensor `[N]` of i64 on the device of the value; a negative one is none.
    pub(super) fn seed_there(&self, value: &Tensor, classes: &Tensor) -> Result<Tensor, ExplainError> {
        let (rows, count) = Self::shape(value)?;
        let takes_part = classes.f_ge(0i64)?.f_unsqueeze(1)?.f_to_kind(Kind::Float)?;
        let seed = if count == 1 {
            let is_for = classes.f_eq(i64::from(self.spoken_for()))?.f_unsqueeze(1)?.f_to_kind(Kind::Float)?;
            is_for.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?.f_mul(&takes_part)?
        } else {
            let zeros = Tensor::f_zeros([rows, count], (Kind::Float, value.device()))?;
            zeros.f_scatter(1, &classes.f_clamp_min(0)?.f_unsqueeze(1)?, &takes_part)?
        };
        Ok(seed.f_view(value.size().as_slice())?.f_to_kind(value.f_kind()?)?)
    }

    /// The `count` highest classes of one row of logits, the highest first; of equal ones, the lower index first.
    pub fn predictions(&self, logits: &[f32], count: usize) -> Vec<Prediction> {
        let predict = self.predict(logits);
        highest(logits, count).into_iter().map(predict).collect()
    }

    /// Classes of one row of logits, by their indices.
    pub(super) fn predicted<const N: usize>(&self, logits: &[f32], classes: [usize; N]) -> [Prediction; N] {
        classes.map(self.predict(logits))
    }

    fn predict(&self, logits: &[f32]) -> impl Fn(usize) -> Prediction {
        let probability = probabilities(self.activation, logits);
        move |index| Prediction { class_index: index as u32, logit: logits[index], probability: probability(index) }
    }

    /// Whether the model has probabilities.
    pub(super) fn has_probabilities(&self) -> bool {
        self.activation != Activation::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head::with(Activation::Softmax)
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
    fn one_logit_is_two_classes_for_and_against() {
        let head = Head { activation: Activation::Sigmoid, ..head() };
        for shape in [&[2i64][..], &[2, 1], &[2, 1, 1, 1]] {
            let value = Tensor::from_slice(&[2.0f32, -1.0]).view(shape);
            let logits = head.logits(&value).unwrap();
            assert_eq!(Vec::<f32>::try_from(logits.flatten(0, -1)).unwrap(), [2.0, -2.0, -1.0, 1.0]);
            let seed = head.seed(&value, &[Some(0), Some(1)]).unwrap();
            assert_eq!((seed.size(), Vec::<f32>::try_from(seed.view(-1)).unwrap()), (shape.to_vec(), vec![1.0, -1.0]));
        }
        let top = head.predictions(&[-1.0, 1.0], 2);
        assert_eq!((top[0].class_index, top[1].class_index), (1, 0));
        assert!((top[0].probability - 0.731_058_6).abs() < 1e-6 && (top[1].probability - 0.268_941_4).abs() < 1e-6);
    }

    #[test]
    fn one_logit_speaks_for_the_class_whose_probability_is_its_sigmoid() {
        let head = Head { activation: Activation::Sigmoid, last: Final::SigmoidAndRest { class: 1 }, ..head() };
        let value = Tensor::from_slice(&[2.0f32, -1.0]).view([2, 1]);
        let logits = head.logits(&value).unwrap();
        assert_eq!(Vec::<f32>::try_from(logits.flatten(0, -1)).unwrap(), [-2.0, 2.0, 1.0, -1.0]);
        let seed = head.seed(&value, &[Some(0), Some(1)]).unwrap();
        assert_eq!(Vec::<f32>::try_from(seed.view(-1)).unwrap(), [-1.0, 1.0]);
        let probability = value.sigmoid();
        let output = Tensor::cat(&[1.0 - &probability, probability], 1);
        assert!(head.output(&logits, 2).unwrap().allclose(&output, 1e-6, 0.0, false));
    }

    #[test]
    fn seeds_made_on_the_device_are_those_made_on_the_host() {
        let heads = [head(), Head { last: Final::SigmoidAndRest { class: 1 }, ..head() }];
        for (head, shape) in heads.iter().flat_map(|head| [(head, vec![3, 4]), (head, vec![3, 1]), (head, vec![3])]) {
            let value = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
            for classes in [[Some(0), Some(1), None], [Some(1), None, Some(0)]] {
                let codes: Vec<i64> = classes.iter().map(|class| class.map_or(-1, i64::from)).collect();
                let there = head.seed_there(&value, &Tensor::from_slice(&codes)).unwrap();
                assert_eq!(there, head.seed(&value, &classes).unwrap(), "{shape:?} {classes:?}");
            }
        }
    }

    #[test]
    fn the_output_of_the_model_follows_from_its_logits() {
        let logits = Tensor::from_slice(&[0.5f32, 1.5, -1.0]).view([1, 3]);
        let output = |last| Head { last, ..head() }.output(&logits, 3).unwrap();
        assert_eq!(output(Final::Logits), logits);
        assert_eq!(output(Final::Softmax), logits.softmax(1, Kind::Float));
        assert_eq!(output(Final::LogSoftmax), logits.log_softmax(1, Kind::Float));
        assert_eq!(output(Final::Sigmoid), logits.sigmoid());
    }

    #[test]
    fn an_output_that_is_not_rows_of_classes_is_refused_with_its_shape() {
        let output = Tensor::zeros([1, 2, 3], (Kind::Float, Device::Cpu));
        let error = head().logits(&output).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 3]") && error.contains("[N, classes]"), "{error}");
        assert!(matches!(head().seed(&output, &[]), Err(ExplainError::Output { .. })));
    }
}
