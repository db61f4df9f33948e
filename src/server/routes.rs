//! What can be called: the services of each face, health and reflection.

use tonic::Status;
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
    // The descriptors have the services of the admin port, too.
    let reflection = || {
        let services = camlens::SERVICES.into_iter().chain(["grpc.health.v1.Health"]);
        services.fold(reflection(), |builder, service| builder.with_service_name(service))
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

/// The services that every server has, beside the older version of reflection.
const COMMON_SERVICES: [&str; 2] = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];

/// The most that is repeated of a path.
const MAX_REPEATED_CHARACTERS: usize = 100;

/// UNIMPLEMENTED for a path that is none of a method, with what there is; `None` for a method's.
pub(super) fn unknown_method(path: &str) -> Option<Status> {
    if method_name(path) != "_OTHER" {
        return None;
    }
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let short = |name: &str| name.chars().take(MAX_REPEATED_CHARACTERS).collect::<String>();
    let known = COMMON_METHODS.into_iter().chain(camlens::METHODS);
    let methods: Vec<&str> =
        known.filter_map(|known| known.strip_prefix('/')?.strip_prefix(service)?.strip_prefix('/')).collect();
    Some(Status::unimplemented(if methods.is_empty() {
        let services: Vec<&str> = camlens::SERVICES.into_iter().chain(COMMON_SERVICES).collect();
        format!("there is no service {} here; there is {}", short(service), services.join(", "))
    } else {
        format!("{} has no method {:?}; it has {}", short(service), short(method), methods.join(", "))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_method_is_told_what_there_is() {
        let message = |path: &str| unknown_method(path).expect("it is unknown").message().to_owned();
        for known in COMMON_METHODS.into_iter().chain(camlens::METHODS) {
            assert!(unknown_method(known).is_none(), "{known}");
        }
        assert_eq!(
            message("/inference.GRPCInferenceService/ServerLive"),
            "there is no service inference.GRPCInferenceService here; there is camlens.v1.ExplainService, \
             camlens.v1.ModelService, grpc.health.v1.Health, grpc.reflection.v1.ServerReflection"
        );
        assert_eq!(
            message("/camlens.v1.ExplainService/explain"),
            "camlens.v1.ExplainService has no method \"explain\"; it has Explain, ExplainStream"
        );
        for path in ["/", "", "//", "/camlens.v1.ExplainService", "/camlens.v1/Explain", "*"] {
            assert!(message(path).starts_with("there is no service "), "{path}: {}", message(path));
        }
        assert!(message(&format!("/{}/x", "a".repeat(60_000))).len() < 300);
        assert!(message(&format!("/grpc.health.v1.Health/{}", "a".repeat(60_000))).len() < 300);
    }

    #[test]
    fn known_methods_have_their_names_and_all_others_share_one() {
        assert_eq!(method_name("/camlens.v1.ExplainService/ExplainStream"), "camlens.v1.ExplainService/ExplainStream");
        assert_eq!(method_name("/grpc.health.v1.Health/Check"), "grpc.health.v1.Health/Check");
        for unknown in ["/camlens.v1.ExplainService/Explode", "grpc.health.v1.Health/Check", ""] {
            assert_eq!(method_name(unknown), "_OTHER", "{unknown:?}");
        }
    }
}
