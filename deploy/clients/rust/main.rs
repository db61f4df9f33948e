//! Streams a folder of pictures to camlens and writes an overlay of each. deploy/clients/README.md explains the steps.
//! `cargo run --release --example streamfolder FOLDER OUT`; `CAMLENS_SERVER` and the other variables name the server.

mod frames;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs};

use camlens::client::{Address, Bearer, ClientError, TlsSettings, connect};
use camlens::proto::v1::{self, stream_policy::Overflow};
use tonic::{Code, Status};

use self::frames::Frames;

/// Connects, and holds a stream on that connection.
async fn converse(frames: &mut Frames, out: &Path) -> Result<(), Box<dyn Error>> {
    let address: Address = env::var("CAMLENS_SERVER").unwrap_or("127.0.0.1:8033".into()).parse()?;
    let tls = TlsSettings { authorities: env::var_os("CAMLENS_TLS_CA").map(PathBuf::from), ..TlsSettings::default() };
    let bearer = match env::var_os("CAMLENS_TOKEN_FILE") {
        Some(file) => Bearer::read(Path::new(&file))?,
        None => Bearer::default(),
    };
    let (picture, format) = (v1::Picture::Overlay.into(), v1::ImageFormat::Png.into());
    let overlay = v1::PictureOutput { picture, format, ..Default::default() };
    let is_live = env::var("CAMLENS_OVERFLOW").is_ok_and(|overflow| overflow == "LATEST");
    let overflow = if is_live { Overflow::Latest } else { Overflow::Block };
    let open = v1::Open {
        options: Some(v1::ExplainOptions { pictures: vec![overlay], ..Default::default() }),
        policy: Some(v1::StreamPolicy { overflow: overflow.into(), ..Default::default() }),
        ..Default::default()
    };
    frames.converse(connect(&address, &tls, bearer).await?, open, out).await
}

/// Whether another try may succeed: there is no server at the moment, or the connection broke.
fn may_pass(error: &(dyn Error + 'static)) -> bool {
    let codes = [Code::Unavailable, Code::Internal, Code::Unknown, Code::Cancelled];
    error.downcast_ref::<Status>().is_some_and(|status| codes.contains(&status.code()))
        || matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, out] = &arguments[..] else { return Err("streamfolder FOLDER OUT".into()) };
    let mut frames = Frames::default();
    for entry in fs::read_dir(folder)? {
        frames.files.push(entry?.path());
    }
    frames.files.sort();
    frames.waiting = (1..=frames.files.len() as u64).collect();
    let mut tries = 0;
    while !frames.waiting.is_empty() {
        let before = frames.waiting.len();
        if let Err(error) = converse(&mut frames, out).await
            && (tries == 20 || !may_pass(&*error))
        {
            return Err(error);
        }
        tries = if frames.waiting.len() < before { 0 } else { tries + 1 };
        // A random part of 0.1, 0.2, 0.4, … 5 s: clients of a server that restarts do not all come at once.
        let random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos() % 1000;
        tokio::time::sleep(Duration::from_millis((100 << tries.min(6)).min(5000)) * random / 1000).await;
    }
    println!("{:?}", frames.counts);
    Ok(())
}
