//! A repository of models that changes while the built binary serves it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use camlens::proto::v1;
use camlens::proto::v1::RepositoryState as State;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;

use super::conversation::Conversation;
use super::images;
use super::sidecar::{FIRST, SECOND, Sidecar, network, place, state_of};

const NET: &str = "net";

fn selector(name: &str, version: Option<i64>) -> Option<v1::ModelSelector> {
    Some(v1::ModelSelector { name: name.to_owned(), version })
}

async fn explain(
    client: &mut ExplainServiceClient<Channel>,
    model: Option<v1::ModelSelector>,
) -> Result<v1::ModelIdentity, tonic::Status> {
    let request = v1::ExplainRequest { model, frame: Some(images::frame(1)), ..Default::default() };
    let explanation = client.explain(request).await?.into_inner().explanation.expect("an explanation");
    Ok(explanation.model.expect("the model is named"))
}

async fn opened(client: &mut ExplainServiceClient<Channel>, overflow: Overflow) -> (Conversation, v1::ModelIdentity) {
    let policy = v1::StreamPolicy { overflow: overflow as i32, ..Default::default() };
    let open = v1::Open { policy: Some(policy), ..Default::default() };
    let (stream, opened) = Conversation::open(client, open).await;
    (stream, opened.model.expect("the model is named"))
}

/// Sends frames one after the other and counts the answers; opens a new stream after `each` frames.
async fn steady(mut client: ExplainServiceClient<Channel>, each: u64, is_over: Arc<AtomicBool>, count: Arc<AtomicU64>) {
    while !is_over.load(Ordering::Relaxed) {
        let (mut stream, model) = opened(&mut client, Overflow::Block).await;
        for sequence in 1..=each {
            stream.frame(sequence).await;
            let explanation = stream.explanation().await;
            assert_eq!(explanation.sequence, sequence);
            assert_eq!(explanation.model.expect("the model is named").digest, model.digest);
            count.fetch_add(1, Ordering::Relaxed);
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
        stream.half_close();
        assert_eq!(stream.status().await.code(), Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_reloads_under_steady_streams_lose_no_frame_and_keep_no_memory() {
    let folder = Sidecar::folder();
    place(FIRST, &folder.path().join("models/net/1"));
    let sidecar = Sidecar::start(folder, &[]).await;
    let (is_over, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let mut clients = Vec::new();
    // One stream that has the first model to the end, and one that opens again and again.
    for each in [u64::MAX, 5] {
        let (is_over, count) = (Arc::clone(&is_over), Arc::clone(&count));
        clients.push(tokio::spawn(steady(sidecar.explain().await, each, is_over, count)));
    }
    let mut admin = sidecar.admin().await;
    let mut resident = Vec::new();
    for round in 0..10 {
        let before = count.load(Ordering::Relaxed);
        // The contents alternate, so that a reload is seen in the answers.
        place(if round % 2 == 0 { SECOND } else { FIRST }, &sidecar.version(NET, 1));
        let reload = v1::ReloadModelRequest { name: NET.to_owned(), version: Some(1) };
        let versions = admin.reload_model(reload).await.expect("it can be loaded").into_inner().versions;
        assert_eq!(state_of(&versions, NET, 1), Some(State::Served));
        let mut client = sidecar.explain().await;
        assert_eq!(explain(&mut client, None).await.expect("it serves").digest, versions[0].digest);
        // Frames go on with the new model.
        while count.load(Ordering::Relaxed) < before + 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        resident.push(sidecar.resident());
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("every frame was answered");
    }
    let (early, late) = (resident[3], resident[9]);
    assert!(late as f64 <= early as f64 * 1.02, "resident KiB after each reload: {resident:?}");
    sidecar.until("one model is counted", |versions| versions.len() == 1 && versions[0].in_use == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_during_overload_takes_effect_and_every_frame_has_one_ending() {
    let folder = Sidecar::folder();
    place(FIRST, &folder.path().join("models/net/1"));
    let config = folder.path().join("camlens.toml");
    fs::write(&config, "[limits]\nqueued_frames = 4\nmax_batch = 1\n").expect("a file");
    let config = config.to_str().expect("UTF-8").to_owned();
    let sidecar = Sidecar::start(folder, &["--config", &config]).await;
    let is_over = Arc::<AtomicBool>::default();
    let mut floods = Vec::new();
    for _ in 0..3 {
        let (mut client, is_over) = (sidecar.explain().await, Arc::clone(&is_over));
        floods.push(tokio::spawn(async move {
            let (mut stream, _) = opened(&mut client, Overflow::Reject).await;
            let (mut sent, mut ended, mut rejected) = (0, 0, 0);
            while !is_over.load(Ordering::Relaxed) {
                // As many as the credit allows.
                while sent < ended + 16 {
                    sent += 1;
                    stream.frame(sent).await;
                }
                match stream.next().await {
                    Response::Explanation(explanation) => assert_eq!(explanation.sequence, ended + 1),
                    Response::FrameError(error) => {
                        assert_eq!((error.sequence, error.code), (ended + 1, Code::ResourceExhausted as i32));
                        rejected += 1;
                    }
                    other => panic!("an ending, not {other:?}"),
                }
                ended += 1;
            }
            stream.half_close();
            while let Some(message) = stream.read().await.expect("the stream ends well") {
                assert!(matches!(message, Response::Explanation(_) | Response::FrameError(_)));
                ended += 1;
            }
            assert_eq!(ended, sent, "one ending for each frame");
            rejected
        }));
    }
    let mut admin = sidecar.admin().await;
    place(SECOND, &sidecar.version(NET, 1));
    let load = v1::LoadModelRequest { name: NET.to_owned(), version: None };
    let versions = admin.load_model(load).await.expect("it is proved in spite of full queues").into_inner().versions;
    let (_stream, model) = opened(&mut sidecar.explain().await, Overflow::Block).await;
    assert_eq!(model.digest, versions[0].digest);
    is_over.store(true, Ordering::Relaxed);
    let mut rejected = 0;
    for flood in floods {
        rejected += flood.await.expect("no frame was lost");
    }
    assert!(rejected > 0, "the server was overloaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_new_version_leaves_the_old_one_serving_and_is_named_with_the_reason() {
    let folder = Sidecar::folder();
    place(FIRST, &folder.path().join("models/net/1"));
    fs::write(folder.path().join("models/net/config.pbtxt"), "platform: \"onnxruntime_onnx\"").expect("a file");
    let sidecar = Sidecar::start(folder, &["--poll", "1"]).await;
    let mut client = sidecar.explain().await;
    let first = explain(&mut client, None).await.expect("it serves");
    assert_eq!(first.version, 1);

    fs::create_dir(sidecar.version(NET, 2)).expect("a folder");
    fs::write(sidecar.version(NET, 2).join("model.pt2"), b"\x80\x02 a pickle").expect("a file");
    sidecar.until("it fails", |versions| state_of(versions, NET, 2) == Some(State::Failed)).await;
    assert_eq!(explain(&mut client, None).await.expect("the old one serves"), first);
    let listed = sidecar.models().await;
    assert_eq!(listed.models.iter().map(|model| model.version).collect::<Vec<_>>(), [1]);
    let problem = &listed.problems[0];
    assert!(problem.version == Some(2) && problem.reason.contains("pickle"), "{problem:?}");
    let status = explain(&mut client, selector(NET, Some(2))).await.expect_err("it cannot be served");
    assert!(status.code() == Code::NotFound && status.message().contains("pickle"), "{status:?}");
    let check = HealthCheckRequest { service: NET.to_owned() };
    let health = sidecar.health().await.check(check).await.expect("it is known").into_inner();
    assert_eq!(health.status, 1, "SERVING");
    let mut admin = sidecar.admin().await;
    let reload = v1::ReloadModelRequest { name: NET.to_owned(), version: Some(2) };
    let status = admin.reload_model(reload).await.expect_err("it is still broken");
    assert!(status.code() == Code::FailedPrecondition && status.message().contains("pickle"), "{status:?}");

    // Triton's default policy serves the newest version alone.
    place(SECOND, &sidecar.version(NET, 2));
    sidecar
        .until("the new one takes over", |versions| {
            versions.len() == 1 && state_of(versions, NET, 2) == Some(State::Served)
        })
        .await;
    assert_eq!(explain(&mut client, None).await.expect("it serves").version, 2);
    assert!(sidecar.models().await.problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_taken_away_goes_on_for_the_streams_that_have_it() {
    let folder = Sidecar::folder();
    place(FIRST, &folder.path().join("models/net/1"));
    let sidecar = Sidecar::start(folder, &["--poll", "1"]).await;
    let mut client = sidecar.explain().await;
    let (mut stream, old) = opened(&mut client, Overflow::Block).await;
    place(SECOND, &sidecar.version(NET, 2));
    fs::remove_dir_all(sidecar.version(NET, 1)).expect("it is there");
    sidecar
        .until("the old one is gone", |versions| {
            versions.len() == 1 && state_of(versions, NET, 2) == Some(State::Served)
        })
        .await;
    let new = explain(&mut client, None).await.expect("it serves");
    assert!((new.version, old.version) == (2, 1) && new.digest != old.digest);
    let status = explain(&mut client, selector(NET, Some(1))).await.expect_err("it is gone");
    assert_eq!(status.code(), Code::NotFound);
    for sequence in 1..=5 {
        stream.frame(sequence).await;
        assert_eq!(stream.explanation().await.model.expect("the model is named").digest, old.digest);
    }
    stream.half_close();
    assert_eq!(stream.status().await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_grace_a_stream_whose_model_was_replaced_is_told_to_open_again() {
    let folder = Sidecar::folder();
    place(FIRST, &folder.path().join("models/net/1"));
    let config = folder.path().join("camlens.toml");
    fs::write(&config, "[models]\nstream_grace_s = 0\n").expect("a file");
    let config = config.to_str().expect("UTF-8").to_owned();
    let sidecar = Sidecar::start(folder, &["--config", &config]).await;
    let mut client = sidecar.explain().await;
    let (mut stream, old) = opened(&mut client, Overflow::Block).await;
    stream.frame(1).await;
    assert_eq!(stream.explanation().await.sequence, 1);
    let reload = v1::ReloadModelRequest { name: NET.to_owned(), version: None };
    sidecar.admin().await.reload_model(reload).await.expect("it can be loaded");
    match stream.next().await {
        Response::GoingAway(going) => {
            assert_eq!(going.last_accepted_sequence, Some(1));
            assert!(going.reason.contains("replaced"), "{going:?}");
        }
        other => panic!("GoingAway, not {other:?}"),
    }
    assert_eq!(stream.status().await.code(), Code::Ok);
    let (_stream, new) = opened(&mut client, Overflow::Block).await;
    assert_eq!(new.digest, old.digest, "the same contents");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_link_is_loaded_once_its_contents_differ() {
    let folder = Sidecar::folder();
    let copy = |network: &str, name: &str| place(network, &folder.path().join(name).join("net/1"));
    for (network, name) in [(FIRST, "first"), (FIRST, "same"), (SECOND, "other")] {
        copy(network, name);
    }
    let root = folder.path().to_owned();
    let swap = |name: &str| {
        symlink(name, root.join("new")).expect("a link");
        fs::rename(root.join("new"), root.join("models")).expect("it is swapped at once");
    };
    swap("first");
    let sidecar = Sidecar::start(folder, &["--poll", "1"]).await;
    let mut client = sidecar.explain().await;
    let first = explain(&mut client, None).await.expect("it serves");
    let (stream, _) = opened(&mut client, Overflow::Block).await;
    let in_use = |versions: &[v1::RepositoryVersion]| versions.len() == 1 && versions[0].in_use == 1;
    sidecar.until("the stream has it", in_use).await;
    swap("same");
    sidecar.until("it is seen", |versions| state_of(versions, NET, 1) == Some(State::Pending)).await;
    let served = |versions: &[v1::RepositoryVersion]| state_of(versions, NET, 1) == Some(State::Served);
    sidecar.until("it rests", served).await;
    sidecar.until("nothing was loaded: the stream's model is the one that serves", in_use).await;
    swap("other");
    let differs = |versions: &[v1::RepositoryVersion]| served(versions) && versions[0].digest != first.digest;
    sidecar.until("the other contents serve", differs).await;
    assert_ne!(explain(&mut client, None).await.expect("it serves").digest, first.digest);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_written_is_served_when_it_is_whole() {
    let folder = Sidecar::folder();
    fs::create_dir(folder.path().join("models")).expect("a folder");
    let sidecar = Sidecar::start(folder, &["--poll", "1"]).await;
    let mut client = sidecar.explain().await;
    let status = explain(&mut client, None).await.expect_err("there is no model");
    assert_eq!(status.code(), Code::NotFound);
    fs::create_dir_all(sidecar.version(NET, 1)).expect("a folder");
    let whole = fs::read(network(FIRST)).expect("the fixture is there");
    let mut file = fs::File::create(sidecar.version(NET, 1).join("model.pt2")).expect("a file");
    for part in whole.chunks(whole.len() / 12) {
        file.write_all(part).expect("it can be written");
        let listed = sidecar.until("it is listed or not yet seen", |_| true).await;
        assert_ne!(state_of(&listed, NET, 1), Some(State::Served));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    sidecar.until("it serves", |versions| state_of(versions, NET, 1) == Some(State::Served)).await;
    assert_eq!(explain(&mut client, None).await.expect("it serves").name, NET);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_triton_is_served_but_for_what_cannot_be_explained() {
    let folder = Sidecar::folder();
    let models = folder.path().join("models");
    for version in [1, 2] {
        place(FIRST, &models.join("classifier").join(version.to_string()));
    }
    let labels: String = (0..10).map(|class| format!("class {class}\n")).collect();
    fs::write(models.join("classifier/labels.txt"), labels).expect("a file");
    let config = r#"
        name: "classifier"
        platform: "tensorrt_plan"
        max_batch_size: 4
        input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 33, 33 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" } ]
        instance_group [ { count: 1 kind: KIND_GPU } ]
        dynamic_batching { max_queue_delay_microseconds: 100 }
    "#;
    fs::write(models.join("classifier/config.pbtxt"), config).expect("a file");
    fs::create_dir_all(models.join("preparation/1")).expect("a folder");
    fs::write(models.join("preparation/1/model.py"), "").expect("a file");
    fs::write(models.join("preparation/config.pbtxt"), "backend: \"python\"").expect("a file");
    let sidecar = Sidecar::start(folder, &[]).await;
    let mut client = sidecar.explain().await;
    let request = v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() };
    let explanation = client.explain(request).await.expect("it serves").into_inner().explanation.expect("one");
    let model = explanation.model.expect("the model is named");
    assert_eq!((model.name.as_str(), model.version), ("classifier", 2), "the newest, as Triton serves it");
    assert!(explanation.predictions[0].label.starts_with("class "), "{:?}", explanation.predictions[0]);
    let problems = sidecar.models().await.problems;
    assert_eq!((problems.len(), problems[0].name.as_str()), (1, "preparation"));
    assert!(problems[0].reason.contains("Python"), "{problems:?}");
    let check = HealthCheckRequest { service: "preparation".to_owned() };
    let health = sidecar.health().await.check(check).await.expect("it is known").into_inner();
    assert_eq!(health.status, 2, "NOT_SERVING");
    let listed = sidecar.until("it is listed", |versions| versions.len() == 2).await;
    assert_eq!(state_of(&listed, "preparation", 1), Some(State::Failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_limit_evicts_the_model_that_was_used_the_longest_time_ago_until_it_is_asked_for() {
    let folder = Sidecar::folder();
    for name in ["a", "b", "c"] {
        place(FIRST, &folder.path().join("models").join(name).join("1"));
    }
    // Room for two: each is counted with twice its file.
    let size = fs::metadata(network(FIRST)).expect("the fixture is there").len();
    let limit = (size * 5).to_string();
    let sidecar = Sidecar::start(folder, &["--models-memory", &limit]).await;
    let mut client = sidecar.explain().await;
    let served = |versions: &[v1::RepositoryVersion]| -> Vec<String> {
        let served = versions.iter().filter(|version| version.state() == State::Served);
        served.map(|version| version.name.clone()).collect()
    };
    assert_eq!(sidecar.models().await.models.len(), 3, "all are known");
    for (asked, in_memory) in
        [("a", ["a", "b"]), ("b", ["a", "b"]), ("c", ["b", "c"]), ("b", ["b", "c"]), ("a", ["a", "b"])]
    {
        let model = explain(&mut client, selector(asked, None)).await.expect("it is loaded");
        assert_eq!(model.name, asked);
        sidecar.until(asked, |versions| served(versions) == in_memory).await;
    }
    // A model that a stream has stays.
    let open = v1::Open { model: selector("a", None), ..Default::default() };
    let (_first, _) = Conversation::open(&mut client, open).await;
    let open = v1::Open { model: selector("b", None), ..Default::default() };
    let (_second, _) = Conversation::open(&mut client, open).await;
    let status = explain(&mut client, selector("c", None)).await.expect_err("there is no room");
    assert!(status.code() == Code::Unavailable && status.message().contains("models.memory_limit"), "{status:?}");
    assert_eq!(explain(&mut client, selector("a", None)).await.expect("it is there").name, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_unloads_and_loads_models_by_name() {
    let folder = Sidecar::folder();
    for version in ["1", "2"] {
        place(FIRST, &folder.path().join("models/net").join(version));
    }
    let sidecar = Sidecar::start(folder, &[]).await;
    let (mut admin, mut client) = (sidecar.admin().await, sidecar.explain().await);
    let unload = |name: &str, version| v1::UnloadModelRequest { name: name.to_owned(), version };
    let load = |name: &str, version| v1::LoadModelRequest { name: name.to_owned(), version };
    let versions = admin.unload_model(unload(NET, Some(2))).await.expect("it is there").into_inner().versions;
    assert_eq!(state_of(&versions, NET, 2), Some(State::Unloaded));
    assert_eq!(explain(&mut client, None).await.expect("the other version serves").version, 1);
    admin.unload_model(unload(NET, None)).await.expect("it is there");
    assert_eq!(explain(&mut client, None).await.expect_err("nothing serves").code(), Code::NotFound);
    let versions = admin.load_model(load(NET, None)).await.expect("they are sound").into_inner().versions;
    assert_eq!(versions.iter().map(v1::RepositoryVersion::state).collect::<Vec<_>>(), [State::Served, State::Served]);
    assert_eq!(explain(&mut client, None).await.expect("it serves").version, 2);
    for (name, version) in [("none", None), (NET, Some(3)), ("../net", None)] {
        let status = admin.load_model(load(name, version)).await.expect_err("there is none");
        assert_eq!(status.code(), Code::NotFound, "{name}: {status:?}");
    }
    assert_eq!(admin.load_model(load("", None)).await.expect_err("no name").code(), Code::InvalidArgument);
    // It is not served where frames go.
    let status = client_of_frames(&sidecar).await.expect_err("another port has it");
    assert_eq!(status.code(), Code::Unimplemented);
}

async fn client_of_frames(sidecar: &Sidecar) -> Result<(), tonic::Status> {
    let mut client =
        camlens::proto::v1::repository_service_client::RepositoryServiceClient::new(sidecar.channel().await);
    client.list_repository(v1::ListRepositoryRequest {}).await.map(|_| ())
}
