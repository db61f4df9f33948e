//! The face of `camlens.v1`. Generated types are converted here, and nowhere else in the server.
//!
//! [`request`] turns messages into what [`crate::server::submit`] takes, and [`response`] turns answers into messages.
//! [`explain`] has the calls for one frame, [`stream`] drives a [`crate::stream::Session`] for each stream, [`models`]
//! lists the models, and [`repository`] administers them, on the admin port.

pub mod explain;
pub mod models;
pub mod repository;
pub mod request;
pub mod response;
pub mod stream;

use tonic::server::NamedService;
use tonic::service::Routes;

use crate::proto::v1::explain_service_server::ExplainServiceServer;
use crate::proto::v1::model_service_server::ModelServiceServer;
use crate::server::service::Service;
use crate::server::transport::serve::max_message_bytes;

pub use crate::proto::FILE_DESCRIPTOR_SET;

/// The services, as health and reflection know them.
pub(super) const SERVICES: [&str; 2] = [ExplainServiceServer::<Service>::NAME, ModelServiceServer::<Service>::NAME];

/// The methods, as paths.
pub(super) const METHODS: [&str; 4] = [
    "/camlens.v1.ExplainService/Explain",
    "/camlens.v1.ExplainService/ExplainStream",
    "/camlens.v1.ModelService/ListModels",
    "/camlens.v1.ModelService/GetModel",
];

/// The services, for messages of frames whose payloads have at most `max_frame_bytes`.
pub(super) fn routes(service: Service, max_frame_bytes: u64) -> Routes {
    let explain = ExplainServiceServer::new(service.clone())
        .max_decoding_message_size(max_message_bytes(max_frame_bytes))
        .max_encoding_message_size(usize::MAX);
    Routes::new(explain).add_service(ModelServiceServer::new(service))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn services_and_methods_are_those_of_the_protocol() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the protocol's descriptors");
        let files = set.file.iter().filter(|file| file.package() == "camlens.v1");
        // The one of the admin port is none of those where frames go.
        let services = files.flat_map(|file| &file.service).filter(|service| service.name() != "RepositoryService");
        let services: Vec<_> = services.collect();
        let mut names: Vec<String> = services.iter().map(|service| format!("camlens.v1.{}", service.name())).collect();
        let of = |service: &&prost_types::ServiceDescriptorProto| {
            let name = service.name().to_owned();
            service.method.clone().into_iter().map(move |method| format!("/camlens.v1.{name}/{}", method.name()))
        };
        let mut methods: Vec<String> = services.iter().flat_map(of).collect();
        let (mut known_services, mut known_methods) = (SERVICES, METHODS);
        names.sort_unstable();
        methods.sort_unstable();
        known_services.sort_unstable();
        known_methods.sort_unstable();
        assert_eq!(names, known_services);
        assert_eq!(methods, known_methods);
    }
}
