use super::*;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

#[test]
fn one_holder_at_a_time_and_shared_holders_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let first = Lock::exclusive(&path, soon()).unwrap();
    assert!(Lock::try_exclusive(&path).unwrap().is_none());
    drop(first);
    let one = Lock::shared(&path, soon()).unwrap();
    let two = Lock::shared(&path, soon()).unwrap();
    assert!(Lock::try_exclusive(&path).unwrap().is_none());
    drop((one, two));
    assert!(Lock::try_exclusive(&path).unwrap().is_some());
}

#[test]
fn a_try_makes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    assert!(Lock::try_exclusive(&path).unwrap().is_none());
    assert!(Lock::try_shared(&path).unwrap().is_none());
    assert!(!path.exists());
}

#[test]
fn an_upgrade_needs_to_be_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let mut one = Lock::shared(&path, soon()).unwrap();
    let two = Lock::shared(&path, soon()).unwrap();
    assert!(!one.upgrade_now().unwrap());
    // Shared again, not lost: an exclusive lock is still not to be had.
    drop(two);
    assert!(Lock::try_exclusive(&path).unwrap().is_none());
    assert!(one.upgrade_now().unwrap());
    assert!(one.upgrade_now().unwrap());
    let late = Deadline::after(Duration::ZERO);
    assert_eq!(Lock::shared(&path, late).unwrap_err().code, Code::TryAgain);
}

#[test]
fn an_upgrade_notices_that_the_file_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let mut lock = Lock::shared(&path, soon()).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!lock.upgrade_now().unwrap());
    assert!(lock.upgrade_now().unwrap());
    assert!(Lock::try_exclusive(&path).unwrap().is_none());
}

#[test]
fn the_holder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let _held = Lock::exclusive(&path, soon()).unwrap();
    let error = Lock::exclusive(&path, Deadline::after(Duration::ZERO)).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    assert!(error.msg.contains(&format!("pid {} ", std::process::id())), "{}", error.msg);
    assert!(error.msg.contains(path.to_str().unwrap()), "{}", error.msg);
}

#[test]
fn a_removed_file_is_not_locked_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let lock = Lock::exclusive(&path, soon()).unwrap();
    // A waiter that opened the file before it was removed locks it in the end, and must notice.
    let old = open(&path, false).unwrap();
    lock.remove_file().unwrap();
    assert!(!path.exists());
    assert!(try_flock(&old, Mode::Exclusive).unwrap());
    assert!(is_at(&old, &path).unwrap().is_none());
    let anew = Lock::exclusive(&path, soon()).unwrap();
    assert!(is_at(&old, &path).unwrap().is_none());
    fs::remove_file(&path).unwrap();
    anew.remove_file().unwrap();
}

#[test]
fn the_lock_file_holds_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Lock::exclusive(&dir.path().join("record"), soon()).unwrap();
    assert_eq!(lock.read().unwrap(), b"");
    lock.write(b"a longer record").unwrap();
    lock.write(b"short").unwrap();
    assert_eq!(lock.read().unwrap(), b"short");
    assert_eq!(lock.read().unwrap(), b"short");
}

#[test]
fn a_missing_directory_is_an_io_error_that_names_the_file() {
    let error = Lock::exclusive(Path::new("/nonexistent/lock"), soon()).unwrap_err();
    assert_eq!(error.code, Code::Io);
    assert!(error.msg.contains("/nonexistent/lock"), "{}", error.msg);
}

/// All that come at the same time lock the same file in the end.
#[test]
fn what_is_no_file_gives_way() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let spoils: [fn(&Path); 3] = [
        |path| fs::create_dir(path).unwrap(),
        |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("something"), b"of somebody").unwrap();
        },
        |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
    ];
    for spoil in spoils {
        for _ in 0..50 {
            spoil(&path);
            let inside = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let lock = Lock::exclusive(&path, soon()).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    });
                }
            });
            assert!(path.is_file());
            fs::remove_file(&path).unwrap();
        }
    }
    let kept = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(kept, 50, "what is in a directory is somebody's");
}
