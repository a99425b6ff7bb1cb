//! As little HTTP as the client needs. Connections that are kept alive are told `Connection: close` with the next
//! answer once the process leaves: none is closed under a request.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How long a process that leaves waits for its connections.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Answers until the client closes, or until it was told to.
pub async fn serve(mut stream: TcpStream, leaving: watch::Receiver<bool>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let body = format!("{{\"version\":\"{}\"}}\n", std::process::id());
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let asked = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let close = *leaving.borrow() || asked.contains("\r\nconnection: close\r\n");
        let connection = if close { "connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{connection}\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await?;
        if close {
            return stream.shutdown().await;
        }
        request.clear();
    }
}
