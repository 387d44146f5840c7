//! What the documentation says is true: its networks work, its commands and links lead somewhere, its keys exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use weft_tests::{Etcd, Host, Network, Pod, dist, peers};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace")
}

/// Every page: its path and its text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].iter().map(|name| root().join(name)).collect();
    for entry in fs::read_dir(root().join("docs")).expect("read docs/") {
        paths.push(entry.expect("an entry of docs/").path());
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The fenced blocks of a language.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().expect("a block")).collect()
}

#[track_caller]
fn cnitool(directory: &Path, command: &str, network: &str, pod: &Pod) {
    let output = Command::new(peers().join("cnitool"))
        .args([command, network])
        .arg(pod.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").expect("a PATH"))
        .env("NETCONFPATH", directory)
        .env("CNI_PATH", std::env::join_paths([dist(), peers()]).expect("a search path"))
        .output()
        .expect("run cnitool");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "cnitool {command} {network}: {}", String::from_utf8_lossy(&text));
}

/// What flanneld or weftd would have written on the host.
fn leased() {
    let env = "FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET=10.240.34.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    fs::create_dir_all("/run/flannel").expect("make a directory");
    fs::write("/run/flannel/subnet.env", env).expect("write subnet.env");
}

/// The network that a JSON block shows, as a conflist: it is one, or it is the configuration of one plugin.
fn conflist(json: Value) -> Option<Value> {
    let name = json.get("name")?.clone();
    if json.get("plugins").is_some() {
        return Some(json);
    }
    json.get("type")?;
    Some(json!({ "cniVersion": json["cniVersion"], "name": name, "plugins": [json] }))
}

/// All JSON is JSON, and a network attaches and detaches a container.
#[test]
fn networks_in_the_documentation_work() {
    let mut networks = 0;
    for (path, text) in pages() {
        for block in blocks(&text, "json") {
            let json: Value = serde_json::from_str(block)
                .unwrap_or_else(|error| panic!("{}: {error} in {block}", path.display()));
            let Some(conflist) = conflist(json) else { continue };
            let name = conflist["name"].as_str().expect("a network's name is text");
            let host = Host::new();
            if conflist.to_string().contains(r#""type":"flannel""#) {
                leased();
            }
            let _store = conflist.to_string().contains("\"etcd\"").then(|| Etcd::beside(&host));
            let pod = Pod::new();
            let directory = Path::new("/run/networks");
            fs::create_dir(directory).expect("make a directory");
            fs::write(directory.join("10-example.conflist"), conflist.to_string())
                .expect("write the network");
            cnitool(directory, "add", name, &pod);
            cnitool(directory, "check", name, &pod);
            cnitool(directory, "del", name, &pod);
            networks += 1;
        }
    }
    assert!(
        networks >= 3,
        "README.md, docs/configuration.md and docs/ipam.md each show a network, found {networks}"
    );
}

/// A word such as `hack/demo` or `conf/10-weft.conflist` in the text is a file of the repository.
#[test]
fn files_named_in_the_documentation_exist() {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "/.-_".contains(c);
    for (path, text) in pages() {
        for word in text.split(|c| !is_path(c)).map(|word| word.trim_end_matches(['.', '/'])) {
            if ["hack/", "conf/", "docs/"].iter().any(|directory| word.starts_with(directory)) {
                assert!(root().join(word).exists(), "{} names {word}, which is not there", path.display());
            }
        }
        for target in text.split("](").skip(1).map(|rest| rest.split(')').next().expect("a link's end")) {
            if target.starts_with("http") {
                continue;
            }
            let linked = path.parent().expect("a directory").join(target.split('#').next().expect("a path"));
            assert!(linked.exists(), "{} links to {target}, which is not there", path.display());
        }
    }
}

/// The scripts that the documentation tells people to run can be run.
#[test]
fn scripts_are_executable() {
    use std::os::unix::fs::PermissionsExt;
    for script in ["hack/build", "hack/demo", "hack/test", "hack/bench", "hack/peers", ".ci/run"] {
        let mode = fs::metadata(root().join(script))
            .unwrap_or_else(|error| panic!("{script}: {error}"))
            .permissions();
        assert!(mode.mode() & 0o111 == 0o111, "{script} is not executable");
    }
}

/// The table in docs/configuration.md has every key that `weft` knows, and its defaults are accepted as values.
#[test]
fn keys_are_documented_with_values_that_weft_takes() {
    let text = fs::read_to_string(root().join("docs/configuration.md")).expect("docs/configuration.md");
    let rows: Vec<(&str, Value)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"))
        .map(|(key, rest)| {
            let default = rest.split("` |").next().expect("a default");
            (key, serde_json::from_str(default).unwrap_or_else(|error| panic!("default of {key}: {error}")))
        })
        .collect();

    let source = fs::read_to_string(root().join("cni-plugin/src/conf/keys.rs")).expect("keys.rs");
    let list = source.split("const KEYS: &[&str] = &[").nth(1).and_then(|rest| rest.split("];").next());
    let known: Vec<&str> = list.expect("the list of keys").split('"').skip(1).step_by(2).collect();
    assert!(known.len() > 10, "{known:?}");
    for key in &known {
        assert!(text.contains(&format!("`{key}`")), "docs/configuration.md does not mention {key}");
    }

    let _host = Host::new();
    for (key, default) in rows {
        assert!(known.contains(&key), "docs/configuration.md documents {key}, which weft does not know");
        let mut network = Network::new("documented", &[]);
        network.conf[key] = default;
        network.status().done();
    }
}
