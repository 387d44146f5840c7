//! Reading what the runtime sends, without waiting for ever.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::read;

use crate::{Code, Deadline, Error};

/// The longest configuration in bytes.
pub(crate) const SIZE_MAX: usize = 1 << 20;

/// What most configurations fit into.
const SIZE_USUAL: usize = 4096;

/// Reads everything until the writer closes.
///
/// # Errors
/// [`Code::Io`] when the deadline passes first or reading fails, [`Code::Decode`] for more than [`SIZE_MAX`].
pub(crate) fn read_all(input: impl AsFd, deadline: Deadline) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; SIZE_USUAL];
    let mut filled = 0;
    loop {
        wait_readable(&input, deadline, filled)?;
        match read(&input, &mut bytes[filled..]) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Ok(count) => filled += count,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => {
                return Err(Error::new(
                    Code::Io,
                    format!(
                        "reading the configuration from stdin failed: {errno}; call again with a pipe or a file"
                    ),
                ));
            }
        }
        if filled > SIZE_MAX {
            return Err(Error::new(
                Code::Decode,
                "stdin has more than 1 MiB: no network configuration is that long",
            ));
        }
        if filled == bytes.len() {
            bytes.resize((filled * 2).min(SIZE_MAX + 1), 0);
        }
    }
}

fn wait_readable(input: &impl AsFd, deadline: Deadline, filled: usize) -> Result<(), Error> {
    loop {
        let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, deadline.poll_timeout()) {
            Ok(0) if deadline.expired() => {
                return Err(Error::new(
                    Code::Io,
                    format!(
                        "stdin was not closed in time ({filled} bytes came): the caller must close it after the \
                         network configuration (WEFT_STDIN_TIMEOUT sets the time in seconds)"
                    ),
                ));
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(Error::new(Code::Io, format!("waiting for stdin failed: {errno}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn everything_until_the_end() {
        for size in [0, 1, SIZE_USUAL - 1, SIZE_USUAL, SIZE_USUAL + 1, SIZE_MAX] {
            let sent = vec![b'x'; size];
            let (reader, mut writer) = std::io::pipe().unwrap();
            std::thread::scope(|scope| {
                let sent = &sent;
                scope.spawn(move || writer.write_all(sent).unwrap());
                assert_eq!(read_all(&reader, soon()).unwrap().len(), size);
            });
        }
    }

    #[test]
    fn too_much() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(&vec![b'x'; SIZE_MAX + 1]).unwrap());
            assert_eq!(read_all(&reader, soon()).unwrap_err().code, Code::Decode);
        });
    }

    #[test]
    fn never_closed() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"{}").unwrap();
        let error = read_all(&reader, Deadline::after(Duration::from_millis(20))).unwrap_err();
        assert_eq!(error.code, Code::Io);
        assert!(error.msg.contains("2 bytes came"), "{error}");
    }

    #[test]
    fn not_readable() {
        let directory = std::fs::File::open("/").unwrap();
        assert_eq!(read_all(&directory, soon()).unwrap_err().code, Code::Io);
    }
}
