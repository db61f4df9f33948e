//! Pictures of guided backpropagation and Guided Grad-CAM: mid-grey is a gradient of the mean.

use super::RenderError;
use super::map::check_length;
use crate::frame::{Channels, Pixels};
use crate::model::description::ColorOrder;

/// A picture of a gradient `[C, H, W]`: `clip(0.1 · (t - mean) / (std + 1e-5) + 0.5, 0, 1)`, with the mean and the
/// standard deviation of the whole tensor (pytorch-grad-cam's `deprocess_image`). `color` is the order of the three
/// channels; one channel makes a grey picture. Values that are not finite count as zero.
///
/// # Errors
/// [`RenderError::Shape`] when `C` is neither 1 nor 3 or a side is 0, [`RenderError::Length`] when `values` does not
/// have `C · H · W` elements.
pub fn guided_picture(values: &[f32], shape: [u32; 3], color: ColorOrder) -> Result<Pixels, RenderError> {
    check_length(values, &shape)?;
    let [channel_count, height, width] = shape;
    let planes: &[usize] = match (channel_count, color) {
        (1, _) => &[0],
        (3, ColorOrder::Bgr) => &[2, 1, 0],
        (3, _) => &[0, 1, 2],
        _ => return Err(RenderError::Shape { shape: shape.to_vec(), allowed: "1 or 3 channels do" }),
    };
    if height == 0 || width == 0 {
        return Err(RenderError::Shape { shape: shape.to_vec(), allowed: "no side may be 0" });
    }
    let finite = |value: f32| if value.is_finite() { f64::from(value) } else { 0.0 };
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| finite(value)).sum::<f64>() / count;
    let variance = values.iter().map(|&value| (finite(value) - mean).powi(2)).sum::<f64>() / count;
    let contrast = 0.1 / (variance.sqrt() + 1e-5);
    let level = |value: f32| (((finite(value) - mean) * contrast + 0.5).clamp(0.0, 1.0) * 255.0) as u8;
    let area = height as usize * width as usize;
    let data = (0..area).flat_map(|at| planes.iter().map(move |plane| level(values[plane * area + at]))).collect();
    let channels = if planes.len() == 1 { Channels::Gray } else { Channels::Rgb };
    Ok(Pixels::upright(width, height, channels, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_without_evidence_is_an_even_grey() {
        let picture = guided_picture(&[0.0; 12], [3, 2, 2], ColorOrder::Rgb).unwrap();
        assert_eq!(picture.data(), [127; 12]);
    }

    #[test]
    fn values_are_spread_around_grey_as_pytorch_grad_cam_does() {
        // deprocess_image of [0, 0, 0, 4]: mean 1, standard deviation √3
        let picture = guided_picture(&[0.0, 0.0, 0.0, 4.0], [1, 2, 2], ColorOrder::Gray).unwrap();
        assert_eq!(picture.channels(), Channels::Gray);
        assert_eq!(picture.data(), [112, 112, 112, 171]);
    }

    #[test]
    fn the_picture_is_rgb_whatever_order_the_model_takes() {
        let values = [1.0, 0.0, 0.0];
        let rgb = guided_picture(&values, [3, 1, 1], ColorOrder::Rgb).unwrap();
        let bgr = guided_picture(&values, [3, 1, 1], ColorOrder::Bgr).unwrap();
        assert!(rgb.data()[0] > rgb.data()[2]);
        assert_eq!(bgr.data(), [rgb.data()[2], rgb.data()[1], rgb.data()[0]]);
    }

    #[test]
    fn no_value_spoils_the_picture() {
        let values = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN];
        assert_eq!(guided_picture(&values, [1, 2, 2], ColorOrder::Gray).unwrap().data().len(), 4);
        assert!(guided_picture(&values, [2, 1, 2], ColorOrder::Rgb).is_err());
        assert!(guided_picture(&[], [1, 0, 2], ColorOrder::Rgb).is_err());
    }
}
