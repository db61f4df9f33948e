//! Names of the protocol's enum values, for files, tables and JSON.

use crate::proto::v1;

/// The name of a stage, such as `copy_in`; `stage_42` for an unknown value. The other functions work alike.
pub fn stage(value: i32) -> String {
    word(v1::Stage::try_from(value).map(|v| v.as_str_name()), "STAGE_", value)
}

/// The name of a drop reason, such as `replaced`.
pub fn drop_reason(value: i32) -> String {
    word(v1::dropped::Reason::try_from(value).map(|v| v.as_str_name()), "REASON_", value)
}

/// The name of a picture, such as `guided_grad_cam`.
pub fn picture(value: i32) -> String {
    word(v1::Picture::try_from(value).map(|v| v.as_str_name()), "PICTURE_", value)
}

/// The name of a map, such as `grad_cam`.
pub fn map(value: i32) -> String {
    word(v1::Map::try_from(value).map(|v| v.as_str_name()), "MAP_", value)
}

/// The name of a precision, such as `exact`.
pub fn precision(value: i32) -> String {
    word(v1::Precision::try_from(value).map(|v| v.as_str_name()), "PRECISION_", value)
}

/// The name of a notice, such as `no_rectifier`.
pub fn notice(value: i32) -> String {
    word(v1::notice::Code::try_from(value).map(|v| v.as_str_name()), "CODE_", value)
}

/// File extension and media type of an image format.
pub fn image_format(value: i32) -> (&'static str, &'static str) {
    match v1::ImageFormat::try_from(value) {
        Ok(v1::ImageFormat::Png) => ("png", "image/png"),
        Ok(v1::ImageFormat::Webp) => ("webp", "image/webp"),
        Ok(v1::ImageFormat::Jpeg | v1::ImageFormat::Unspecified) | Err(_) => ("jpg", "image/jpeg"),
    }
}

fn word<E>(name: Result<&'static str, E>, prefix: &str, value: i32) -> String {
    match name {
        Ok(name) => name.strip_prefix(prefix).unwrap_or(name).to_lowercase(),
        Err(_) => format!("{}{value}", prefix.to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_protocols_without_the_prefix() {
        assert_eq!(stage(v1::Stage::CopyIn as i32), "copy_in");
        assert_eq!(drop_reason(v1::dropped::Reason::SlowReader as i32), "slow_reader");
        assert_eq!(picture(v1::Picture::HeatMap as i32), "heat_map");
        assert_eq!(map(v1::Map::GradCam as i32), "grad_cam");
        assert_eq!(precision(v1::Precision::Exact as i32), "exact");
        assert_eq!(notice(v1::notice::Code::NoRectifier as i32), "no_rectifier");
        assert_eq!(stage(99), "stage_99");
    }

    #[test]
    fn every_stage_of_a_response_has_telemetrys_name() {
        let wire: Vec<_> = (1..).map_while(|value| v1::Stage::try_from(value).ok()).map(|s| stage(s as i32)).collect();
        let telemetry_names: Vec<_> = crate::telemetry::Stage::ALL.iter().map(|stage| stage.name()).collect();
        assert_eq!(
            wire,
            telemetry_names[..telemetry_names.len() - 1],
            "all but `send`, which a message cannot contain"
        );
    }
}
