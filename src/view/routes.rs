//! The page's addresses.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::access::{self, Access};
use super::hub::{Hub, Shown, Viewer};
use super::message::message;
use super::picture::Picture;
use super::shot::Shot;
use crate::render::page;

/// How often a page hears of its stream's counts and of the other streams.
const NEWS: Duration = Duration::from_secs(1);

/// The page for this hub's streams.
pub fn routes(hub: Hub, access: Access) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/style.css", get(|| async { file("text/css", page::STYLE) }))
        .route("/live.css", get(|| async { file("text/css", include_str!("page/live.css")) }))
        .route("/paint.js", get(|| async { file("text/javascript", page::PAINT) }))
        .route("/colors.js", get(|| async { file("text/javascript", page::colors_script()) }))
        .route("/live.js", get(|| async { file("text/javascript", include_str!("page/live.js")) }))
        .route("/live", get(live_newest))
        .route("/live/{stream}", get(live))
        .route("/mjpeg/{picture}", get(mjpeg_newest))
        .route("/mjpeg/{picture}/{stream}", get(mjpeg))
        .with_state(hub)
        .layer(from_fn_with_state(access, access::check))
        .layer(map_response(guarded))
}

async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("page/index.html").replace("{help}", page::HELP))
}

fn file(media_type: &'static str, text: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, media_type)], text.into()).into_response()
}

/// Nothing is kept by caches, shown inside other pages, or loaded from elsewhere.
async fn guarded(mut response: Response) -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn live_newest(State(hub): State<Hub>) -> Response {
    live_of(hub, None)
}

async fn live(State(hub): State<Hub>, Path(stream): Path<String>) -> Response {
    live_of(hub, Some(stream))
}

/// The messages for the page: frames as they are drawn, and news. Without a stream there is only news.
fn live_of(hub: Hub, asked: Option<String>) -> Response {
    let Some(mut viewer) = hub.admit() else { return full(&hub) };
    let shown = hub.find(asked.as_deref());
    if let Some(shown) = &shown {
        viewer.look_at(Arc::clone(shown));
    }
    let body = fed(move |sink| feed_page(hub, shown, viewer, sink));
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

async fn mjpeg_newest(State(hub): State<Hub>, Path(picture): Path<String>) -> Response {
    mjpeg_of(hub, &picture, None)
}

async fn mjpeg(State(hub): State<Hub>, Path((picture, stream)): Path<(String, String)>) -> Response {
    mjpeg_of(hub, &picture, Some(&stream))
}

fn mjpeg_of(hub: Hub, picture: &str, asked: Option<&str>) -> Response {
    let picture: Picture = match picture.parse() {
        Ok(picture) => picture,
        Err(sentence) => return (StatusCode::NOT_FOUND, format!("{sentence}\n")).into_response(),
    };
    let Some(shown) = hub.find(asked) else {
        return (StatusCode::NOT_FOUND, "there is no such stream\n").into_response();
    };
    let Some(mut viewer) = hub.admit() else { return full(&hub) };
    viewer.look_at(Arc::clone(&shown));
    let body = fed(move |sink| feed_pictures(shown, picture, viewer, sink));
    ([(header::CONTENT_TYPE, "multipart/x-mixed-replace; boundary=frame")], body).into_response()
}

fn full(hub: &Hub) -> Response {
    let most = hub.limits().max_viewers;
    let sentence = format!("{most} viewers look already, and that is the limit (view.max_viewers)\n");
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], sentence).into_response()
}

/// A body that a task feeds, which ends with its client.
fn fed<F: Future<Output = ()> + Send + 'static>(feed: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Body {
    // One message waits for the client; the next one is made when it has been taken.
    let (sink, messages) = mpsc::channel(1);
    tokio::spawn(feed(sink));
    Body::from_stream(ReceiverStream::new(messages).map(Ok::<_, Infallible>))
}

async fn feed_page(hub: Hub, shown: Option<Arc<Shown>>, _viewer: Viewer, sink: mpsc::Sender<Bytes>) {
    let mut shots = shown.as_ref().map(|shown| shown.shots());
    if let Some(shots) = &mut shots {
        // A frame that was drawn before anybody looked is old.
        shots.mark_unchanged();
    }
    let mut news = tokio::time::interval(NEWS);
    loop {
        tokio::select! {
            () = sink.closed() => return,
            _ = news.tick() => {}
            () = changed(&mut shots) => {}
        }
        // The newest frame is chosen when the client has room for it, so that a slow one skips frames.
        let Ok(room) = sink.reserve().await else { return };
        let ended = shown.as_ref().is_some_and(|shown| shown.has_ended());
        match newest(&mut shots).filter(|_| !ended) {
            Some(shot) => room.send(shot.message.clone()),
            None => room.send(message(news_of(&hub, shown.as_deref(), ended), &[])),
        }
        if ended {
            return;
        }
    }
}

async fn changed(shots: &mut Option<watch::Receiver<Option<Arc<Shot>>>>) {
    if let Some(shots) = shots
        && shots.changed().await.is_ok()
    {
        return shots.mark_changed();
    }
    std::future::pending().await
}

/// The newest frame, if it has not been taken.
fn newest(shots: &mut Option<watch::Receiver<Option<Arc<Shot>>>>) -> Option<Arc<Shot>> {
    let shots = shots.as_mut()?;
    if !shots.has_changed().unwrap_or(false) {
        return None;
    }
    shots.borrow_and_update().clone()
}

fn news_of(hub: &Hub, shown: Option<&Shown>, ended: bool) -> Value {
    let facts = |facts: super::StreamFacts| json!({"id": facts.id, "name": facts.name, "model": facts.model});
    let stream = shown.map(|shown| {
        let (known, counts) = (shown.facts(), shown.counts());
        json!({
            "id": known.id,
            "name": known.name,
            "model": known.model,
            "policy": known.policy,
            "answered": counts.answered,
            "failed": counts.failed,
            "dropped": counts.dropped,
            "ended": ended,
        })
    });
    let streams: Vec<Value> = hub.facts().into_iter().map(facts).collect();
    json!({"kind": "news", "streams": streams, "stream": stream})
}

async fn feed_pictures(shown: Arc<Shown>, picture: Picture, _viewer: Viewer, sink: mpsc::Sender<Bytes>) {
    let mut shots = Some(shown.shots());
    if let Some(shots) = &mut shots {
        shots.mark_unchanged();
    }
    loop {
        tokio::select! {
            () = sink.closed() => return,
            () = changed(&mut shots) => {}
        }
        let Ok(room) = sink.reserve().await else { return };
        if shown.has_ended() {
            return;
        }
        let Some(shot) = newest(&mut shots) else { continue };
        let encoded = tokio::task::spawn_blocking(move || shot.picture(picture)).await;
        if let Ok(Some(file)) = encoded {
            let head = format!("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", file.len());
            room.send([head.as_bytes(), &file, b"\r\n"].concat().into());
        }
    }
}
