//! The defaults in docs/configuration.md are those of the code.

use super::*;
use crate::conf::chained::Chained;
use crate::conf::names::Names;

const PAGE: &str = include_str!("../../../../docs/configuration.md");

/// Keys whose value alone changes nothing that is read here: other crates read them, or nobody does.
const WITHOUT_EFFECT: &[&str] = &[
    "capabilities", "logFile", "logLevel", "macspoofchk", "preserveDefaultVlan", "runtimeConfig.ipRanges",
    "timeout",
];

/// Everything that a configuration says to Weft.
#[derive(Debug, PartialEq)]
pub(super) struct Meaning {
    network: Option<Network>,
    chained: Option<Chained>,
    asked: Asked,
    names: Names,
    mac: Option<MacAddr>,
    chooses_addresses: bool,
}

impl Meaning {
    pub(super) fn of(conf: &Value) -> Result<Self, Error> {
        let conf = conf.as_object().unwrap();
        let nobody = CniArgs::default();
        let is_chained = chained::is_chained(conf)?;
        Ok(Self {
            network: (!is_chained).then(|| Network::parse(&name(), conf)).transpose()?,
            chained: is_chained.then(|| Chained::parse(conf)).transpose()?,
            asked: Asked::parse(conf)?,
            names: Names::parse(conf, &nobody)?,
            mac: requested_mac(conf, &nobody)?,
            chooses_addresses: chooses_addresses(conf, &nobody),
        })
    }

    /// What an attachment's record keeps of it is read as it was written.
    pub(super) fn survives_records(&self) {
        let Asked { allow, shaping, .. } = &self.asked;
        let kept = (allow, shaping, &self.names);
        let read: (Vec<isolation::Allow>, Shaping, Names) = serde_json::from_value(json!(kept)).unwrap();
        assert_eq!((&read.0, &read.1, &read.2), kept);
    }
}

/// Of the rows with a default: the key, the default, and the example as a configuration.
pub(super) fn rows() -> impl Iterator<Item = (&'static str, Value, Value)> {
    PAGE.lines().filter_map(|line| {
        let [key, default, _replaces, example, _meaning] =
            line.split(" | ").collect::<Vec<_>>().try_into().ok()?;
        let quoted =
            |column: &'static str| column.trim_matches(['|', ' ']).strip_prefix('`')?.strip_suffix('`');
        let json =
            |text: &str| serde_json::from_str(text).unwrap_or_else(|error| panic!("{key} {text}: {error}"));
        Some((quoted(key)?, json(quoted(default)?), json(&format!("{{{}}}", quoted(example)?))))
    })
}

/// The object that has a key of a row, and its name there.
fn place<'c>(conf: &'c mut Value, key: &'static str) -> (&'c mut Map<String, Value>, &'static str) {
    let mut place = conf;
    let mut name = key;
    while let Some((object, rest)) = name.split_once('.') {
        (place, name) = (&mut place[object], rest);
    }
    (place.as_object_mut().unwrap_or_else(|| panic!("{key} is not in its example")), name)
}

#[test]
fn a_default_is_what_its_absence_means() {
    let mut count = 0;
    for (key, default, example) in rows() {
        // `dataDir` is for networks that span hosts. An interface that another plugin made has its addresses from there.
        let mut conf = json!({"name": "net", "ipam": {"type": "weft-ipam", "etcd": {}}});
        if key == "chained" {
            conf = json!({"name": "net"});
        }
        conf.as_object_mut().unwrap().extend(example.as_object().unwrap().clone());
        let meaning =
            |conf: &Value| Meaning::of(conf).unwrap_or_else(|error| panic!("{key}: {conf}: {error}"));
        let shown = meaning(&conf);
        let (object, name) = place(&mut conf, key);
        let given = object.insert(name.to_owned(), default.clone()).unwrap();
        let said = meaning(&conf);
        let (object, name) = place(&mut conf, key);
        object.remove(name).unwrap();
        assert_eq!(meaning(&conf), said, "{key}: {default}");
        // Else anything would be as good a default.
        let is_told_apart = given == default || WITHOUT_EFFECT.contains(&key);
        assert_eq!(shown == said, is_told_apart, "{key}: {given} and {default}");
        count += 1;
    }
    assert!(count > 60, "{count} rows");
}

/// Every word in the code that reads configurations, also as a field's name is written in JSON.
fn words() -> BTreeSet<String> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conf");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let sources = files.filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).unwrap());
    let mut words = BTreeSet::new();
    for source in sources.chain([include_str!("../../conf.rs").to_owned()]) {
        for word in source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let mut parts = word.split('_');
            let first = parts.next().unwrap_or_default().to_owned();
            let in_camel_case = parts.fold(first, |camel, part| {
                camel + &part[..part.len().min(1)].to_uppercase() + &part[part.len().min(1)..]
            });
            words.extend([word.to_owned(), in_camel_case]);
        }
    }
    words
}

/// Others may have keys in `args.cni`, so there is no list: a key is known when it makes a difference.
#[test]
fn keys_of_the_conventions_are_documented() {
    let meaning = |cni: Value| Meaning::of(&json!({"name": "net", "args": {"cni": cni}})).ok();
    let nothing = meaning(json!({})).unwrap();
    let known: BTreeSet<String> = words()
        .into_iter()
        .filter(|key| meaning(json!({key: {"no": ["such"]}})).as_ref() != Some(&nothing))
        .collect();
    let documented = rows().filter_map(|(key, ..)| Some(key.strip_prefix("args.cni.")?.to_owned()));
    assert_eq!(known, documented.collect());
}
