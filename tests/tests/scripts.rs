//! What the scripts in hack/ do where a machine lacks something or a build is the wrong one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use weft_tests::{command, script};

/// A program that prints a word, in a tree with the scripts' functions.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("src")).expect("make a directory");
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack"), root.join("hack")).expect("link hack/");
    for (file, text) in [
        ("Cargo.toml", "[package]\nname = \"small\"\nversion = \"0.0.0\"\nedition = \"2024\"\n"),
        ("Cargo.lock", "version = 4\n\n[[package]]\nname = \"small\"\nversion = \"0.0.0\"\n"),
        ("src/main.rs", "fn main() { println!(\"hello\"); }\n"),
    ] {
        fs::write(root.join(file), text).unwrap_or_else(|error| panic!("write {file}: {error}"));
    }
}

/// Runs lines of bash with the scripts' functions, and with programs of these names and texts in place of the real ones.
fn with_stubs(lines: &str, stubs: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in stubs {
        script(&directory.path().to_string_lossy(), name, text);
    }
    let path = std::env::var("PATH").expect("a PATH");
    Command::new("bash")
        .args(["-euc", &format!(". hack/lib\n{lines}")])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env("PATH", format!("{}:{path}", directory.path().display()))
        .env_remove("SUDO_USER")
        .output()
        .expect("run bash")
}

#[test]
fn where_users_may_make_no_namespaces_tests_are_run_by_sudo() {
    let refuse = ("unshare", "exit 1");
    let lines = "use_namespaces; declare -p $(runner_variable)";
    let user = ("id", "echo 1000");
    let output = with_stubs(lines, &[refuse, user, ("sudo", "exit 1")]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("=\"sudo --preserve-env"), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("NOTE: users may make no namespaces"),
        "{output:?}"
    );

    let output = with_stubs(lines, &[refuse, ("id", "echo 0")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("privileged"), "{output:?}");
}

/// Nobody who ran tests wants firewalld at the next boot.
#[test]
fn services_of_packages_do_not_start_with_the_machine() {
    let wants = "/etc/systemd/system/multi-user.target.wants";
    let lines = format!(
        "mount -t tmpfs tmpfs /etc/systemd/system && mkdir -p {wants} && touch {wants}/old.service\ninstall_packages firewalld"
    );
    let come = format!("case \"$*\" in *install*) echo \"apt-get $*\"; touch {wants}/new.service;; esac");
    let systemctl = ("systemctl", "echo systemctl $* >&2");
    let output = with_stubs(&lines, &[("apt-get", &format!("{come} >&2")), systemctl]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("DPkg::Lock::Timeout=300") && said.contains("install firewalld"), "{said}");
    assert!(said.contains("systemctl --quiet disable new.service\n"), "{said}");
}

#[test]
fn with_sudo_before_it_a_script_says_where_rust_is() {
    let output = with_stubs("PATH=/usr/bin:/bin; hash -r; SUDO_USER=somebody use_toolchain", &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("without sudo"), "{output:?}");
}

/// Where the standard library for musl cannot be had.
#[test]
fn a_build_without_musl_is_static_too_and_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    tree(root);
    // A compiler whose libraries are not where it says: it knows no target, and rustup can bring none there.
    let stub = format!(
        "[ \"$*\" = '--print sysroot' ] && exec echo {}\nPATH=${{PATH#*:}} exec rustc \"$@\"",
        root.display()
    );
    script(&root.join("bin").to_string_lossy(), "rustc", &stub);
    let path = std::env::var("PATH").expect("a PATH");
    let output = Command::new("bash")
        .args(["-euc", ". hack/lib; build_static target/dist small:small"])
        .current_dir(root)
        .env("PATH", format!("{}:{path}", root.join("bin").display()))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("run bash");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let note = said.lines().find(|line| line.starts_with("NOTE: ")).unwrap_or_else(|| panic!("{said}"));
    for word in ["-unknown-linux-musl cannot be had", "-unknown-linux-gnu", "static"] {
        assert!(note.contains(word), "{note}");
    }
    let built = root.join("target/dist/small").display().to_string();
    assert_eq!(command(&built), "hello\n");
    let headers = command(&format!("readelf --program-headers --wide {built}"));
    assert!(headers.contains("LOAD") && !headers.contains("INTERP"), "{headers}");
}

/// The tests' own build is one for debugging.
#[test]
fn a_debug_build_is_not_measured() {
    let directory = tempfile::tempdir().expect("a directory");
    let results = directory.path().join("bench");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg(&results)
        .args(["2026-01-01", "floor"])
        .output()
        .expect("run the benchmark");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("debug build") && said.contains("hack/bench"),
        "{said}"
    );
    assert!(!results.exists(), "nothing was measured");
}
