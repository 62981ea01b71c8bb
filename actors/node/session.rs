//! Sessions between processes: ractor_cluster's, over connections that are made and accepted here.
//! Its own listener shakes hands with one who comes while the next waits, for as long as that one
//! likes, so it is left to listen where nobody from elsewhere is.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorId, ActorRef, ActorStatus, SpawnErr};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{IncomingEncryptionMode, NetworkStream, NodeServer, NodeServerMessage};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::ServerName;

use super::secret::{OTHER_SECRET, Secret, Unfit};
use super::{SCOPE, random, wire};

/// A connection and its handshake take no longer.
pub(super) const SHAKE_TIME: Duration = Duration::from_secs(5);
/// Handshakes at once.
const SHAKING_MAX: usize = 64;
/// A connection whose other side acknowledges nothing for so long is none; rows have been given up
/// long before.
const DEAD_TIME: Duration = Duration::from_secs(30);
/// A pause after an error of accepting, which is most often one of too many open files.
const BREATH: Duration = Duration::from_millis(100);

/// The actor that keeps all sessions of this process.
pub(super) type Server = ActorRef<NodeServerMessage>;

/// Why there are no sessions.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The secret cannot be used.
    #[error(transparent)]
    Secret(#[from] Unfit),
    /// The actor did not come up.
    #[error("cannot start the sessions between nodes")]
    Spawn(#[from] SpawnErr),
}

/// Starts the keeper of sessions.
pub(super) async fn server(secret: &Secret) -> Result<Server, Failure> {
    let loopback = IncomingEncryptionMode::Tls(secret.acceptor()?);
    // Its name must be nobody else's, or both take each other for themselves.
    let name = format!("{:016x}", random());
    let mode = Some(NodeConnectionMode::Isolated);
    let cookie = secret.cookie.clone();
    let server = NodeServer::new(0, cookie, name.clone(), name, Some(loopback), mode)
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .with_max_inbound_frame_size(wire::FRAME_BYTES_MAX);
    Ok(Actor::spawn(None, server, ()).await?.0)
}

/// Accepts who has the secret.
pub(super) async fn listen(listener: TcpListener, acceptor: TlsAcceptor, server: Server) {
    let shaking = Arc::new(Semaphore::new(SHAKING_MAX));
    loop {
        let Ok(turn) = Arc::clone(&shaking).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a node");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let (acceptor, server) = (acceptor.clone(), server.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let accepted = async {
                tend(&stream)?;
                let local_addr = stream.local_addr()?;
                let stream = acceptor.accept(stream).await?;
                Ok(NetworkStream::TlsServer { peer_addr: peer, local_addr, stream })
            };
            match tokio::time::timeout(SHAKE_TIME, accepted).await {
                Ok(Ok(stream)) => opened(&server, stream, true),
                Ok(Err::<_, std::io::Error>(error)) => {
                    let why = "who came is no node of ours: does it hold the same secret?";
                    tracing::warn!(%peer, %error, "{why}");
                }
                Err(_) => tracing::warn!(%peer, "who came did not shake hands in time"),
            }
        });
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Apart {
    /// It may be there soon.
    Absent(String),
    /// It does not have our secret.
    Stranger,
}

/// Connects to a gateway. The session follows by itself.
pub(super) async fn connect(address: &str, secret: &Secret, server: &Server) -> Result<(), Apart> {
    let absent = |error: std::io::Error| match error.to_string() {
        said if said.contains(OTHER_SECRET) => Apart::Stranger,
        said => Apart::Absent(said),
    };
    let connector = secret.connector().map_err(|error| Apart::Absent(error.to_string()))?;
    let connected = async {
        let stream = TcpStream::connect(address).await?;
        tend(&stream)?;
        let (local_addr, peer_addr) = (stream.local_addr()?, stream.peer_addr()?);
        // Who it is says its key.
        let name = ServerName::IpAddress(peer_addr.ip().into());
        let stream = connector.connect(name, stream).await?;
        Ok(NetworkStream::TlsClient { peer_addr, local_addr, stream })
    };
    let connected = tokio::time::timeout(SHAKE_TIME, connected).await;
    let late = |_| Apart::Absent("it does not answer".into());
    opened(server, connected.map_err(late)?.map_err(absent)?, false);
    Ok(())
}

fn opened(server: &Server, stream: NetworkStream, is_server: bool) {
    let stream = Box::new(stream);
    // The keeper lives as long as the process.
    let _ = server.cast(NodeServerMessage::ConnectionOpened { stream, is_server });
}

fn tend(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let alive = socket2::TcpKeepalive::new().with_time(DEAD_TIME / 3).with_interval(DEAD_TIME / 3);
    socket.set_tcp_keepalive(&alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(DEAD_TIME))?;
    Ok(())
}

/// The actor of another process that is in this group, and lives.
pub(super) fn found(group: &str) -> Option<ActorCell> {
    let members = ractor::pg::get_scoped_members(&SCOPE.to_owned(), &group.to_owned());
    members.into_iter().find(|cell| !cell.get_id().is_local() && is_there(cell))
}

/// Whether the session by which it is reached stands.
pub(super) fn is_there(cell: &ActorCell) -> bool {
    cell.get_status() < ActorStatus::Stopping
}

/// Ends the session by which this one is reached.
pub(super) async fn hang_up(server: Server, cell: ActorCell) {
    let ActorId::Remote { node_id, .. } = cell.get_id() else { return };
    let sessions = server.call(NodeServerMessage::GetSessions, Some(SHAKE_TIME)).await;
    if let Ok(CallResult::Success(sessions)) = sessions
        && let Some(session) = sessions.get(&node_id)
    {
        session.actor.stop(Some("it was not heard of for too long".into()));
    }
}
