//! One Refract a network namespace: an abstract unix socket is the lock.
//!
//! Abstract names belong to the network namespace, exactly like the sets and the rule that two
//! daemons would fight over, and vanish with the process that bound them, however it ends: there
//! is no file to go stale. Nothing is ever sent over the socket.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use crate::error::Error;

/// The abstract name, as `ss -xa` shows it after the `@`.
pub const LOCK_NAME: &str = "refract";

/// The right to act in this network namespace; given up when dropped.
#[derive(Debug)]
pub struct NamespaceLock {
    _socket: UnixDatagram,
}

impl NamespaceLock {
    /// Takes the lock; [`Error::AlreadyRunning`] when another process holds it.
    pub fn take() -> Result<Self, Error> {
        let bound = SocketAddr::from_abstract_name(LOCK_NAME)
            .and_then(|name| UnixDatagram::bind_addr(&name));
        match bound {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Error::AlreadyRunning),
            Err(source) => Err(Error::Lock { source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_refused_until_the_first_is_gone() {
        // The only test that takes the lock in this process's network namespace.
        let first = NamespaceLock::take().unwrap();
        assert!(matches!(NamespaceLock::take(), Err(Error::AlreadyRunning)));
        drop(first);
        NamespaceLock::take().unwrap();
    }
}
