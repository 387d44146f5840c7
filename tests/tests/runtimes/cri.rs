//! The calls that a kubelet makes to containerd: pods and containers by the Container Runtime Interface.

use std::net::IpAddr;
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    ImageStatusRequest, LinuxPodSandboxConfig, ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StopPodSandboxRequest,
};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use weft_tests::eventually;
use weft_tests::runtime::{Containerd, IMAGE, Machine};

/// How long one call may take: a pod's start is three processes and the network.
const LIMIT: Duration = Duration::from_secs(60);

/// A kubelet's connection.
pub(crate) struct Kubelet {
    tasks: Runtime,
    client: RuntimeServiceClient<Channel>,
    cgroup: String,
}

/// A pod with one container.
pub(crate) struct KubePod {
    id: String,
    container: String,
    /// What the runtime reports as the pod's address.
    pub(crate) address: IpAddr,
}

impl Kubelet {
    /// Connects, and waits until the runtime has its network and has noticed the image.
    pub(crate) fn connect(machine: &Machine) -> Self {
        let tasks = Builder::new_current_thread().enable_all().build().expect("make a tokio runtime");
        let endpoint = Endpoint::from_shared(format!("unix://{}", Containerd::SOCKET))
            .expect("an address")
            .timeout(LIMIT);
        let channel = tasks.block_on(endpoint.connect()).expect("connect to containerd");
        let mut images = ImageServiceClient::new(channel.clone());
        eventually(LIMIT, "containerd's Kubernetes part has the image", || {
            let request = ImageStatusRequest { image: Some(image()), ..Default::default() };
            // An error at first means: not initialised yet.
            tasks.block_on(images.image_status(request)).ok()?.into_inner().image
        });
        let mut kubelet =
            Self { tasks, client: RuntimeServiceClient::new(channel), cgroup: machine.cgroup().to_owned() };
        kubelet.assert_network_is_ready();
        kubelet
    }

    fn assert_network_is_ready(&mut self) {
        let answer =
            self.tasks.block_on(self.client.status(StatusRequest { verbose: true })).expect("Status");
        let status = answer.into_inner();
        let conditions = status.status.expect("a status").conditions;
        let network = conditions.iter().find(|condition| condition.r#type == "NetworkReady");
        assert!(
            network.is_some_and(|condition| condition.status),
            "no network: {conditions:?} {:?}",
            status.info
        );
    }

    /// Starts a pod and in it a container that stays.
    pub(crate) fn run(&mut self, name: &str) -> KubePod {
        self.run_with(name, |_| {})
    }

    /// The same with a configuration that is changed.
    pub(crate) fn run_with(&mut self, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> KubePod {
        let mut config = self.pod_config(name);
        change(&mut config);
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let started = self.tasks.block_on(self.client.run_pod_sandbox(request)).expect("RunPodSandbox");
        let id = started.into_inner().pod_sandbox_id;

        let request = CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
                image: Some(image()),
                log_path: "main.log".to_owned(),
                ..Default::default()
            }),
            sandbox_config: Some(config),
        };
        let created = self.tasks.block_on(self.client.create_container(request)).expect("CreateContainer");
        let container = created.into_inner().container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        self.tasks.block_on(self.client.start_container(request)).expect("StartContainer");

        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let answer = self.tasks.block_on(self.client.pod_sandbox_status(request)).expect("PodSandboxStatus");
        let network =
            answer.into_inner().status.and_then(|status| status.network).expect("a pod with a network");
        let address =
            network.ip.parse().unwrap_or_else(|error| panic!("the pod's address {:?}: {error}", network.ip));
        KubePod { id, container, address }
    }

    fn pod_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: format!("/opt/logs/{name}"),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), ..Default::default() }),
            ..Default::default()
        }
    }

    /// Runs a program in the pod's container and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub(crate) fn exec(&mut self, pod: &KubePod, words: &[&str]) -> String {
        let request = ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.tasks.block_on(self.client.exec_sync(request)).expect("ExecSync").into_inner();
        let stdout = String::from_utf8_lossy(&answer.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert!(
            answer.exit_code == 0,
            "`{}` failed: {} {stdout} {stderr}",
            words.join(" "),
            answer.exit_code
        );
        stdout
    }

    /// Stops a pod and what runs in it: its network goes. A kubelet calls it until it succeeds, and once more.
    pub(crate) fn stop(&mut self, pod: &KubePod) {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.tasks.block_on(self.client.stop_pod_sandbox(request)).expect("StopPodSandbox");
    }

    /// Removes a pod that is stopped.
    pub(crate) fn remove(&mut self, pod: KubePod) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
        self.tasks.block_on(self.client.remove_pod_sandbox(request)).expect("RemovePodSandbox");
    }

    /// The number of pods that the runtime knows.
    pub(crate) fn pods(&mut self) -> usize {
        let answer = self.tasks.block_on(self.client.list_pod_sandbox(ListPodSandboxRequest::default()));
        answer.expect("ListPodSandbox").into_inner().items.len()
    }
}

fn image() -> ImageSpec {
    ImageSpec { image: IMAGE.to_owned(), ..Default::default() }
}
