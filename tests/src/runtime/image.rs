//! A container image made on the spot: no registry is asked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::tools;

/// The name that the image has at every runtime.
pub const IMAGE: &str = "weft.test/box:1";

/// Where [`make`] leaves the root file system, for runtimes that import a plain archive.
pub(super) const LAYER: &str = "/opt/image/layer.tar";

/// Where [`make`] leaves the image in the form of `docker save`.
pub(super) const ARCHIVE: &str = "/opt/image/image.tar";

/// What a container does unless told otherwise: it shows its addresses, so that one sees that its network is there,
/// and stays.
const COMMAND: [&str; 3] = ["/bin/sh", "-c", "ip -4 -o addr; exec sleep infinity"];

/// Makes a docker-archive of one layer: busybox and the directories that a runtime mounts to.
pub(super) fn make() {
    let directory = Path::new("/opt/image");
    let root = directory.join("root");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("make the image's directories");
    }
    tools::command(&format!("cp {} {}", busybox().display(), root.join("bin/busybox").display()));
    for applet in ["ip", "nc", "ping", "sh", "sleep"] {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    tools::command(&format!("busybox tar -cf {LAYER} -C {} .", root.display()));
    let sum = tools::command(&format!("busybox sha256sum {LAYER}"));
    let digest = sum.split_whitespace().next().expect("a digest");

    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": COMMAND, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    fs::write(directory.join("config.json"), config.to_string()).expect("write the image's configuration");
    fs::write(directory.join("manifest.json"), manifest.to_string()).expect("write the image's manifest");
    tools::command(&format!(
        "busybox tar -cf {ARCHIVE} -C {} manifest.json config.json layer.tar",
        directory.display()
    ));
}

fn busybox() -> PathBuf {
    let path = tools::find("busybox").expect("looked for before");
    let bytes = fs::read(&path).expect("read busybox");
    let is_dynamic = bytes.windows(7).any(|window| window == b"/ld-lin" || window == b"/ld-mus");
    assert!(
        !is_dynamic,
        "{} needs shared libraries, which a container has not: apt-get install busybox-static",
        path.display()
    );
    path
}
