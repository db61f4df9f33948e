//! The one table of metrics. Instruments are built from it; tests compare the exported metrics and the table in
//! `deploy/README.md` with it.

/// A metric as the table has it. Names and units follow OpenTelemetry's conventions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// In UCUM; what is counted stands in braces.
    pub unit: &'static str,
    pub attributes: &'static [&'static str],
    pub description: &'static str,
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls, and may be added up over instances.
    UpDownCounter,
    /// Values in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::UpDownCounter => "up-down counter",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// From 50 µs to a minute, in seconds.
pub const SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Of rows.
const ROWS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0];
/// A call may be a stream that runs for weeks.
const CALL_SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 86400.0, 604800.0];

pub const MODEL_NAME: &str = "camlens.model.name";
pub const MODEL_VERSION: &str = "camlens.model.version";

pub const FRAME_ENDED: Metric = Metric {
    name: "camlens.frame.ended",
    kind: Kind::Counter,
    unit: "{frame}",
    attributes: &[MODEL_NAME, MODEL_VERSION, "camlens.outcome", "error.type"],
    description: "Accepted frames that have ended, by outcome: answered, dropped, failed, cancelled",
};
pub const FRAME_DROPPED: Metric = Metric {
    name: "camlens.frame.dropped",
    kind: Kind::Counter,
    unit: "{frame}",
    attributes: &[MODEL_NAME, MODEL_VERSION, "camlens.drop.reason"],
    description: "Frames that were dropped, by reason",
};
pub const FRAME_DURATION: Metric = Metric {
    name: "camlens.frame.duration",
    kind: Kind::Histogram(SECONDS),
    unit: "s",
    attributes: &[MODEL_NAME, MODEL_VERSION, "camlens.outcome"],
    description: "From a frame's acceptance to its end, its answer's sending included",
};
pub const FRAME_AGE: Metric = Metric {
    name: "camlens.frame.age",
    kind: Kind::Histogram(SECONDS),
    unit: "s",
    attributes: &[MODEL_NAME, MODEL_VERSION],
    description: "From a frame's capture_time to its answer's sending, by the clocks of client and server; \
                  times after it or an hour before it do not count",
};
pub const STAGE_DURATION: Metric = Metric {
    name: "camlens.frame.stage.duration",
    kind: Kind::Histogram(SECONDS),
    unit: "s",
    attributes: &[MODEL_NAME, MODEL_VERSION, "camlens.stage"],
    description: "Time of a frame in one stage; the stages add up to the frame's duration",
};
pub const PAYLOAD_SIZE: Metric = Metric {
    name: "camlens.frame.payload.io",
    kind: Kind::Counter,
    unit: "By",
    attributes: &[MODEL_NAME, MODEL_VERSION],
    description: "Bytes of the payloads of the frames that have ended, as they were sent",
};
pub const BATCH_SIZE: Metric = Metric {
    name: "camlens.batch.size",
    kind: Kind::Histogram(ROWS),
    unit: "{row}",
    attributes: &[MODEL_NAME, MODEL_VERSION],
    description: "Rows that ran together on the device, a batch at a time",
};
pub const PREDICTION_AGREEMENT: Metric = Metric {
    name: "camlens.prediction.agreement",
    kind: Kind::Counter,
    unit: "{frame}",
    attributes: &[MODEL_NAME, MODEL_VERSION, "camlens.agreement"],
    description: "Explained frames whose client said what to expect, by whether the model agrees: agrees, disagrees",
};
pub const QUEUE_FRAMES: Metric = Metric {
    name: "camlens.queue.frames",
    kind: Kind::UpDownCounter,
    unit: "{frame}",
    attributes: &[MODEL_NAME, MODEL_VERSION],
    description: "Frames in work, from their admission to their rendering; bounded by limits.model_queued_frames",
};
pub const QUEUE_SIZE: Metric = Metric {
    name: "camlens.queue.size",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &[MODEL_NAME, MODEL_VERSION],
    description: "Bytes that the frames in work take: sent, decoded, and as input; \
                  bounded by limits.model_queued_bytes",
};
pub const MODEL_CHANGES: Metric = Metric {
    name: "camlens.model.changes",
    kind: Kind::Counter,
    unit: "{change}",
    attributes: &[MODEL_NAME, MODEL_VERSION, "camlens.change"],
    description: "What happened to the models of the repository: loaded, failed, retired, evicted",
};
pub const MODEL_MEMORY: Metric = Metric {
    name: "camlens.model.memory.usage",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &[MODEL_NAME, MODEL_VERSION],
    description: "Memory that a served model is counted with, twice the bytes of its files; \
                  bounded by models.memory_limit",
};
pub const UNSENT_SIZE: Metric = Metric {
    name: "camlens.unsent.size",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &[],
    description: "Bytes of answers that their clients have not read yet; bounded by limits.unsent_bytes",
};
pub const STREAMS: Metric = Metric {
    name: "camlens.stream.active",
    kind: Kind::UpDownCounter,
    unit: "{stream}",
    attributes: &[],
    description: "Streams that are open; bounded by limits.max_streams",
};
pub const CREDIT: Metric = Metric {
    name: "camlens.stream.credit",
    kind: Kind::UpDownCounter,
    unit: "{frame}",
    attributes: &[],
    description: "Frames that the open streams may have in flight, taken together",
};
pub const CONNECTIONS: Metric = Metric {
    name: "camlens.connection.active",
    kind: Kind::UpDownCounter,
    unit: "{connection}",
    attributes: &[],
    description: "Connections that are open; bounded by server.max_connections",
};
pub const CONNECTIONS_REFUSED: Metric = Metric {
    name: "camlens.connection.refused",
    kind: Kind::Counter,
    unit: "{connection}",
    attributes: &[],
    description: "Connections that were closed because a limit was reached",
};
pub const DEVICE_BUSY: Metric = Metric {
    name: "camlens.device.busy.time",
    kind: Kind::Counter,
    unit: "s",
    attributes: &["camlens.device.name"],
    description: "Time that the device has spent on batches; its rate is the device's utilisation",
};
pub const DEVICE_FALLBACK: Metric = Metric {
    name: "camlens.device.fallback",
    kind: Kind::UpDownCounter,
    unit: "{fallback}",
    attributes: &[],
    description: "1 if the processor runs the models because CUDA cannot be used (device.name is auto), else 0",
};
pub const DEVICE_MEMORY_USAGE: Metric = Metric {
    name: "camlens.device.memory.usage",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &["camlens.device.name", "camlens.memory.state"],
    description: "Memory of a CUDA device that the process holds: used by tensors, or cached for the next ones",
};
pub const DEVICE_MEMORY_LIMIT: Metric = Metric {
    name: "camlens.device.memory.limit",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &["camlens.device.name"],
    description: "The most memory of a CUDA device that the process may hold: device.memory_limit, or all",
};
pub const TELEMETRY_LOST: Metric = Metric {
    name: "camlens.telemetry.lost",
    kind: Kind::Counter,
    unit: "{item}",
    attributes: &["camlens.signal"],
    description: "Traces of frames, and pages of metrics, that the collector did not take",
};
pub const CALL_DURATION: Metric = Metric {
    name: "rpc.server.call.duration",
    kind: Kind::Histogram(CALL_SECONDS),
    unit: "s",
    attributes: &["rpc.system.name", "rpc.method", "rpc.response.status_code"],
    description: "Calls that have ended; a stream is one call",
};
pub const CPU_TIME: Metric = Metric {
    name: "process.cpu.time",
    kind: Kind::Counter,
    unit: "s",
    attributes: &["cpu.mode"],
    description: "Processor time of the process",
};
pub const MEMORY_USAGE: Metric = Metric {
    name: "process.memory.usage",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &[],
    description: "Resident memory of the process; on a CPU that is the device's memory as well",
};
pub const THREADS: Metric = Metric {
    name: "process.thread.count",
    kind: Kind::UpDownCounter,
    unit: "{thread}",
    attributes: &[],
    description: "Threads of the process",
};
pub const FILE_DESCRIPTORS: Metric = Metric {
    name: "process.unix.file_descriptor.count",
    kind: Kind::UpDownCounter,
    unit: "{file_descriptor}",
    attributes: &[],
    description: "Open file descriptors of the process",
};

/// The whole table.
pub const METRICS: [&Metric; 27] = [
    &FRAME_ENDED,
    &FRAME_DROPPED,
    &FRAME_DURATION,
    &FRAME_AGE,
    &STAGE_DURATION,
    &PAYLOAD_SIZE,
    &BATCH_SIZE,
    &PREDICTION_AGREEMENT,
    &QUEUE_FRAMES,
    &QUEUE_SIZE,
    &MODEL_CHANGES,
    &MODEL_MEMORY,
    &UNSENT_SIZE,
    &STREAMS,
    &CREDIT,
    &CONNECTIONS,
    &CONNECTIONS_REFUSED,
    &DEVICE_BUSY,
    &DEVICE_FALLBACK,
    &DEVICE_MEMORY_USAGE,
    &DEVICE_MEMORY_LIMIT,
    &TELEMETRY_LOST,
    &CALL_DURATION,
    &CPU_TIME,
    &MEMORY_USAGE,
    &THREADS,
    &FILE_DESCRIPTORS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_another_ones_namespace() {
        for one in METRICS {
            for other in METRICS {
                assert!(!other.name.starts_with(&format!("{}.", one.name)), "{} and {}", one.name, other.name);
            }
        }
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md"));
        for Metric { name, kind, unit, attributes, description } in METRICS {
            let attributes: Vec<String> = attributes.iter().map(|name| format!("`{name}`")).collect();
            let row = format!("| `{name}` | {} | `{unit}` | {} | {description} |", kind.name(), attributes.join(", "));
            assert!(readme.contains(&row), "deploy/README.md lacks the row\n{row}");
        }
        let rows = readme.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 4).count();
        assert_eq!(rows, METRICS.len(), "deploy/README.md lists metrics that do not exist");
    }
}
