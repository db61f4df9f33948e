//! Who we are, to a collector: the service, the process, the host, the pod.

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_semantic_conventions::attribute;

use super::ids::new_trace_id;

/// Attributes of the resource and the variables of the environment that Kubernetes' downward API is told to set for
/// them.
const POD: [(&str, &str); 5] = [
    (attribute::K8S_POD_NAME, "K8S_POD_NAME"),
    (attribute::K8S_POD_UID, "K8S_POD_UID"),
    (attribute::K8S_NAMESPACE_NAME, "K8S_NAMESPACE_NAME"),
    (attribute::K8S_NODE_NAME, "K8S_NODE_NAME"),
    (attribute::K8S_CONTAINER_NAME, "K8S_CONTAINER_NAME"),
];

/// What is found out, with `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` laid over. The command line is left out:
/// it may hold what should not leave the machine.
pub fn resource() -> Resource {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let pod = POD.into_iter().filter_map(|(key, name)| Some(KeyValue::new(key, variable(name)?)));
    let found = Resource::builder_empty()
        .with_service_name("camlens")
        .with_attribute(KeyValue::new(attribute::SERVICE_VERSION, env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(attribute::SERVICE_INSTANCE_ID, new_trace_id().to_string()))
        .with_attribute(KeyValue::new(attribute::PROCESS_PID, i64::from(std::process::id())))
        .with_attribute(KeyValue::new(attribute::OS_TYPE, std::env::consts::OS))
        .with_attribute(KeyValue::new(attribute::HOST_ARCH, std::env::consts::ARCH))
        .with_attributes(host_name().map(|name| KeyValue::new(attribute::HOST_NAME, name)))
        .with_attributes(pod)
        .build();
    // With the standard variables, and a name that stands for none.
    let told = Resource::builder().build();
    let told = told.iter().filter(|(key, value)| !is_nobodys_name(key, value));
    let mut all: Vec<KeyValue> = found.iter().map(pair).collect();
    all.extend(told.map(pair));
    Resource::builder_empty().with_attributes(all).build()
}

fn pair((key, value): (&Key, &opentelemetry::Value)) -> KeyValue {
    KeyValue::new(key.clone(), value.clone())
}

fn is_nobodys_name(key: &Key, value: &opentelemetry::Value) -> bool {
    key.as_str() == attribute::SERVICE_NAME && value.as_str().starts_with("unknown_service")
}

#[cfg(target_os = "linux")]
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(not(target_os = "linux"))]
fn host_name() -> Option<String> {
    std::env::var("HOSTNAME").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_names_the_service_and_the_process_and_no_command_line() {
        let resource = resource();
        let value = |key: &'static str| resource.get(&Key::from_static_str(key)).map(|value| value.to_string());
        assert_eq!(value("process.pid"), Some(std::process::id().to_string()));
        assert_eq!(value("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(value("service.instance.id").map(|id| id.len()), Some(32));
        assert!(value("service.name").is_some_and(|name| !name.starts_with("unknown_service")));
        assert_eq!(value("process.command_args"), None);
    }
}
