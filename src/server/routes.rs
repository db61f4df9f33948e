//! What can be called: the services of each face, health and reflection.

use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::camlens;
use super::health::HealthService;
use super::service::Service;

/// All services, for messages of frames whose payloads have at most `max_frame_bytes`.
///
/// # Errors
/// When the descriptors for reflection cannot be read.
pub(super) fn routes(
    service: Service,
    health: HealthService,
    max_frame_bytes: u64,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(camlens::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(camlens::routes(service, max_frame_bytes)
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare())
}

/// The methods that every server has, as paths; each face has its own.
const COMMON_METHODS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// A path's method as metrics name it. Clients choose paths, so all unknown ones share one name.
pub(super) fn method_name(path: &str) -> &'static str {
    let mut known = COMMON_METHODS.into_iter().chain(camlens::METHODS);
    known.find(|known| *known == path).and_then(|known| known.strip_prefix('/')).unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_methods_have_their_names_and_all_others_share_one() {
        assert_eq!(method_name("/camlens.v1.ExplainService/ExplainStream"), "camlens.v1.ExplainService/ExplainStream");
        assert_eq!(method_name("/grpc.health.v1.Health/Check"), "grpc.health.v1.Health/Check");
        for unknown in ["/camlens.v1.ExplainService/Explode", "grpc.health.v1.Health/Check", ""] {
            assert_eq!(method_name(unknown), "_OTHER", "{unknown:?}");
        }
    }
}
