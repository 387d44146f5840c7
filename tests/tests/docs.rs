//! What the documentation says is true: its networks work, its commands and links lead somewhere, its keys exist.

#[path = "docs/ipam.rs"]
mod ipam;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use weft_tests::{Etcd, Host, Network, Pod, command, dist, peers};

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

/// A row of a table of keys in docs/configuration.md.
struct Row {
    key: String,
    /// None where there is no default.
    default: Option<Value>,
    /// A reference plugin, and what it has in place of the key.
    replaces: Option<(String, Vec<String>)>,
    /// What is to be written into the configuration.
    example: Value,
}

impl Row {
    fn read(line: &str) -> Option<Self> {
        let columns: Vec<&str> = line.split(" | ").collect();
        let [key, default, replaces, example, _meaning] = columns[..] else { return None };
        let key = key.strip_prefix("| ")?;
        let text = |column: &str| column.strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
        let json = |text: String| {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{key}: {text}: {error}"))
        };
        let names = replaces.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        Some(Self {
            key: text(key)?,
            default: text(default).map(json),
            replaces: names.split_first().map(|(plugin, keys)| (plugin.clone(), keys.to_vec())),
            example: json(format!(
                "{{ {} }}",
                text(example).unwrap_or_else(|| panic!("{key} has no example"))
            )),
        })
    }

    /// Where the key is in a configuration.
    fn pointer(&self) -> String {
        // The names of the specification's keys have dots of their own.
        let nested = self.key.starts_with("args.") || self.key.starts_with("runtimeConfig.");
        if nested {
            format!("/{}", self.key.replace('.', "/"))
        } else {
            format!("/{}", self.key.replace('/', "~1"))
        }
    }

    /// A configuration with another value of the key, and all that the example has besides.
    fn with(&self, value: Value) -> Value {
        let mut conf = self.example.clone();
        *conf.pointer_mut(&self.pointer()).unwrap_or_else(|| panic!("{} is not in its example", self.key)) =
            value;
        conf
    }
}

/// The rows of all tables of keys.
fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/configuration.md")).expect("docs/configuration.md");
    text.lines().filter_map(Row::read).collect()
}

/// The words of a list in the source of `weft`.
fn list(file: &str, begin: &str) -> Vec<String> {
    let path = root().join("cni-plugin/src/conf").join(file);
    let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let list = source.split(begin).nth(1).and_then(|rest| rest.split(']').next());
    let words =
        list.unwrap_or_else(|| panic!("{} has no {begin}", path.display())).split('"').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

/// The tables in docs/configuration.md have every key that `weft` knows and no other.
#[test]
fn keys_are_documented() {
    let mut known = list("keys.rs", "const KEYS: &[&str] = &[");
    known.extend(list("keys.rs", "const UNBUILT_KEYS: &[&str] = &["));
    assert!(known.len() > 50, "{known:?}");
    let nested = |object: &str, names: Vec<String>| {
        assert!(names.len() > 1, "{object}: {names:?}");
        names.into_iter().map(|name| format!("{object}.{name}")).collect::<Vec<_>>()
    };
    known.extend(nested("runtimeConfig", list("keys.rs", "const CAPABILITIES: &[&str] = &[")));
    known.extend(nested("args.weft", list("asked.rs", "const KEYS: &[&str] = &[")));
    let mut documented: Vec<String> = rows().into_iter().map(|row| row.key).collect();
    // Others may have keys in `args.cni`, so there is no list of those: a unit test tries them.
    documented.retain(|key| !key.starts_with("args.cni."));
    known.sort();
    documented.sort();
    assert_eq!(documented, known);

    let text = fs::read_to_string(root().join("docs/configuration.md")).expect("docs/configuration.md");
    for part in list("guard.rs", "const NAMES: &'static [&'static str] = &[") {
        assert!(
            text.contains(&format!("\n| `{part}` |")),
            "docs/configuration.md lacks the guard's part {part}"
        );
    }
}

/// A network with other values of some keys, as they stand.
fn changed(network: &Network, keys: &Value) -> Network {
    let mut network = network.clone();
    for (key, value) in keys.as_object().expect("an object") {
        network.conf[key] = value.clone();
    }
    network
}

/// Each key's example makes a network to which a container is attached, and its default is accepted as a value.
#[test]
fn keys_are_documented_with_values_that_weft_takes() {
    let _host = Host::new();
    let unaddressed = Network::new("documented", &[]).with(&json!({ "isGateway": true }));
    for row in rows() {
        assert!(row.example.pointer(&row.pointer()).is_some(), "{} is not in its example", row.key);
        if let Some(default) = &row.default {
            changed(&unaddressed, &row.with(default.clone())).status().done();
        }
        if row.key == "chained" {
            // It attaches to what another plugin made.
            let mut behind = unaddressed.clone();
            behind.conf = json!({ "cniVersion": "1.1.0", "name": "documented", "type": "weft" });
            behind.with(&row.example).status().done();
            continue;
        }
        let attached = changed(&Network::v4(), &row.example);
        let pod = Pod::new();
        attached.add(&pod);
        attached.del(&pod);
        if row.key.starts_with("args.cni.") {
            // For what nobody reads, anything would be as good.
            let wrong = changed(&Network::v4(), &row.with(json!({ "no": ["such"] })));
            wrong.add_call(&pod).run().error_code(7).assert_names(&[&row.key]);
        }
        // The next one may be on another bridge, which cannot have the same subnet.
        command(&format!("ip link delete {}", attached.conf["bridge"].as_str().expect("a name")));
    }
}

/// Whether a program in Go has a key of JSON, by what is left of its sources' tags.
fn reads(program: &[u8], key: &str) -> bool {
    let tag = format!("json:\"{key}");
    program.windows(tag.len() + 1).any(|bytes| {
        let (begin, end) = bytes.split_at(tag.len());
        begin == tag.as_bytes() && matches!(end, b"\"" | b",")
    })
}

/// A key that a reference plugin is said to have is one that it reads.
#[test]
fn keys_of_reference_plugins_are_theirs() {
    let plugins = ["bandwidth", "bridge", "firewall", "host-local", "portmap", "tuning"];
    let tags: Vec<(&str, Vec<u8>)> = plugins
        .map(|plugin| {
            (plugin, fs::read(peers().join(plugin)).unwrap_or_else(|error| panic!("{plugin}: {error}")))
        })
        .into();
    let has = |plugin: &str, key: &str| {
        let (_, program) =
            tags.iter().find(|(name, _)| *name == plugin).unwrap_or_else(|| panic!("{plugin}?"));
        reads(program, key)
    };
    for row in rows() {
        let key = row.key.rsplit('.').next().expect("a name");
        match &row.replaces {
            Some((plugin, others)) if others.is_empty() => {
                assert!(has(plugin, key), "{plugin} has no {}", row.key);
            }
            Some((plugin, others)) => {
                for other in others {
                    assert!(has(plugin, other), "{plugin} has no {other}");
                }
            }
            None => {}
        }
    }
}

/// Of a network whose runtime cannot ask.
#[test]
fn status_is_asked_for_by_hand() {
    let _host = Host::new();
    let page = fs::read_to_string(root().join("docs/operations.md")).expect("the page");
    let line = page.lines().find(|line| line.starts_with("jq ")).expect("the command");
    let line = line
        .replace(
            "/etc/cni/net.d/10-weft.conflist",
            &root().join("conf/20-weft-nerdctl-podman.conflist").display().to_string(),
        )
        .replace("/opt/cni/bin", &dist().display().to_string());
    let ask = || Command::new("sh").args(["-c", &line]).output().expect("run a shell");
    let answer = ask();
    assert!(answer.status.success() && answer.stdout.is_empty(), "{line}: {answer:?}");
    command("iptables -P FORWARD DROP");
    let answer = ask();
    let said = String::from_utf8_lossy(&answer.stdout);
    assert!(!answer.status.success() && said.contains("iptables -I FORWARD"), "{said}");
}
