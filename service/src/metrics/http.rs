//! Shows the figures: as much of HTTP as whoever collects them needs.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Metrics, Moment};

/// A request is no longer.
const LONGEST_REQUEST: usize = 8 * 1024;
/// Who asks does so, and reads the answer, within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many are answered at a time.
const AT_ONCE: usize = 4;
/// So long nothing is accepted after the system refused to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers whoever asks for the figures at the socket, until it is dropped.
///
/// # Errors
/// Those of a socket that cannot be made part of the runtime.
pub async fn serve_socket(
    metrics: Arc<Metrics>,
    listener: StdListener,
    moment: impl Fn() -> Moment + Clone + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = Arc::new(UnixListener::from_std(listener)?);
    let accept = move || -> Accepted<UnixStream> {
        let listener = Arc::clone(&listener);
        Box::pin(async move { Ok(listener.accept().await?.0) })
    };
    serve(metrics, accept, moment).await;
    Ok(())
}

/// The same at a port of the loopback interface.
///
/// # Errors
/// Those of a port that cannot be listened on.
pub async fn serve_port(
    metrics: Arc<Metrics>,
    port: u16,
    moment: impl Fn() -> Moment + Clone + Send + 'static,
) -> io::Result<()> {
    let listener = Arc::new(TcpListener::bind(("127.0.0.1", port)).await?);
    let accept = move || -> Accepted<TcpStream> {
        let listener = Arc::clone(&listener);
        Box::pin(async move { Ok(listener.accept().await?.0) })
    };
    serve(metrics, accept, moment).await;
    Ok(())
}

/// A connection that will be accepted.
type Accepted<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    metrics: Arc<Metrics>,
    accept: impl Fn() -> Accepted<S>,
    moment: impl Fn() -> Moment + Clone + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        // It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok(stream) = accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (metrics, moment) = (Arc::clone(&metrics), moment.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = timeout(PATIENCE, answer(stream, &metrics, moment)).await;
        });
    }
}

/// Answers one request of HTTP/1.0 or 1.1, and closes.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: &Metrics,
    moment: impl Fn() -> Moment,
) -> io::Result<()> {
    let asked = request(&mut stream).await?;
    let (status, kind, body) = match asked.as_deref() {
        Some("GET /metrics") => (
            "200 OK",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.text(&moment()),
        ),
        Some(_) => ("404 Not Found", "text/plain", "see /metrics\n".into()),
        None => (
            "400 Bad Request",
            "text/plain",
            "this is no request\n".into(),
        ),
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The method and the path; `None` if it is no request.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    let ends = |head: &[u8]| head.windows(4).any(|end| end == b"\r\n\r\n");
    while !ends(&head) {
        let read = stream.read(&mut part).await?;
        if read == 0 || head.len() + read > LONGEST_REQUEST {
            return Ok(None);
        }
        head.extend_from_slice(&part[..read]);
    }
    let line = head.split(|byte| *byte == b'\r').next();
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let asked = line.and_then(|line| {
        let (asked, version) = line.rsplit_once(' ')?;
        version.starts_with("HTTP/1.").then(|| asked.to_owned())
    });
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Client;

    use super::*;

    fn moment() -> Moment {
        Moment {
            connections: 3,
            ..Moment::default()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_asks_at_the_socket_gets_the_figures_and_what_is_no_request_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let listener = StdListener::bind(&path).unwrap();
        let served = tokio::spawn(serve_socket(Metrics::new(false), listener, moment));
        let ask = move |request: Vec<u8>| {
            let mut stream = Client::connect(&path).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            // It may have answered before it read all.
            let _ = stream.write_all(&request);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8(answer).unwrap()
        };
        let asked = tokio::task::spawn_blocking(move || {
            for version in ["1.0", "1.1"] {
                let request = format!("GET /metrics HTTP/{version}\r\nHost: x\r\n\r\n");
                let answer = ask(request.into_bytes());
                assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
                assert!(answer.contains("claviger_connections 3\n"), "{answer}");
            }
            for other in ["GET / HTTP/1.1\r\n\r\n", "POST /metrics HTTP/1.1\r\n\r\n"] {
                let answer = ask(other.into());
                assert!(answer.starts_with("HTTP/1.0 404 "), "{answer}");
            }
            for bad in [
                &b""[..],
                b"GET /metrics\r\n\r\n",
                b"\xff\xff HTTP/1.1\r\n\r\n",
                b"GET",
            ] {
                let answer = ask(bad.into());
                assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
            }
            // It ends before the end of what never ends; the reset may take the answer along.
            let answer = ask(vec![b'a'; 10 * LONGEST_REQUEST]);
            assert!(!answer.contains("200 OK"), "{answer}");
        });
        asked.await.unwrap();
        served.abort();
    }
}
