//! `dpu-app devices`: every device that DOCA sees and what it says of its engines, for people and for scripts.
//!
//! Nothing here is known beforehand: sizes and list lengths are asked of the device, task counts of a context on it,
//! for which it is opened. A device that this user may not open is listed without them.

use std::fmt::{self, Write};

use doca::{Device, DeviceInfo, EngineCaps, OperationKind, Representor, RepresentorInfo, Selector, comch};

use crate::count::json::Quoted;

/// One device and its answers.
#[derive(Debug)]
pub(crate) struct Listed {
    pub info: DeviceInfo,
    /// Tasks of one context, all types together; `Err` says why it is not known.
    pub copy_tasks: Result<u32, doca::Error>,
    pub decompress_tasks: Result<u32, doca::Error>,
    /// Functions of the host that it can serve by Comch, as `--representor` names them; none on the host's side.
    pub representors: Vec<RepresentorInfo>,
}

/// All of them, in DOCA's order.
///
/// # Errors
/// What `doca_devinfo_create_list` answered.
pub(crate) fn list() -> Result<Vec<Listed>, doca::Error> {
    let listed = |info: DeviceInfo| {
        let device = Device::open(&Selector::Named(info.pci_address.clone()));
        let tasks = |kind| device.as_ref().map_err(|error| *error).and_then(|device| device.tasks_max(kind));
        let (copy_tasks, decompress_tasks) = (tasks(OperationKind::Dma), tasks(OperationKind::Decompress));
        let representors =
            device.as_ref().map_or_else(|_| Vec::new(), |device| Representor::list(device).unwrap_or_default());
        Listed { info, copy_tasks, decompress_tasks, representors }
    };
    Ok(Device::list()?.into_iter().map(listed).collect())
}

impl Listed {
    fn tasks(&self, kind: OperationKind) -> Result<u32, doca::Error> {
        match kind {
            OperationKind::Dma => self.copy_tasks,
            OperationKind::Decompress => self.decompress_tasks,
        }
    }

    fn caps_json(&self, kind: OperationKind, caps: EngineCaps) -> String {
        let tasks = self.tasks(kind).map_or_else(|_| String::from("null"), |tasks| tasks.to_string());
        format!("{{\"bytes_max\":{},\"list_max\":{},\"tasks_max\":{tasks}}}", caps.bytes_max, caps.list_max)
    }

    fn json(&self) -> String {
        let mut text =
            format!("{{\"pci_address\":{},\"ibdev\":{}", Quoted(&self.info.pci_address), Quoted(&self.info.ibdev));
        for (name, kind, caps) in self.info.engines() {
            let caps = caps.map_or_else(|| String::from("null"), |caps| self.caps_json(kind, caps));
            let _ = write!(text, ",\"{name}\":{caps}");
        }
        let comch::Caps { can_serve, can_connect, message_bytes_max, .. } = self.info.comch;
        let representors = self.representors.iter().map(|function| {
            let RepresentorInfo { pci_address, interface, is_physical } = function;
            format!("{{\"pci_address\":{pci_address:?},\"interface\":{interface:?},\"physical\":{is_physical}}}")
        });
        let representors = representors.collect::<Vec<_>>().join(",");
        let (exports, imports) = (self.info.exports_memory, self.info.imports_memory);
        let _ = write!(text, ",\"comch\":{{\"server\":{can_serve},\"client\":{can_connect}");
        let _ = write!(text, ",\"message_bytes_max\":{message_bytes_max}}},\"representors\":[{representors}]");
        let _ = write!(text, ",\"exports_memory\":{exports},\"imports_memory\":{imports}}}");
        text
    }
}

/// Words joined by `and`, or `no`.
fn words(given: [(&str, bool); 2]) -> String {
    let words: Vec<&str> = given.into_iter().filter(|(_, is)| *is).map(|(word, _)| word).collect();
    if words.is_empty() { String::from("no") } else { words.join(" and ") }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.info.name())?;
        for (name, kind, caps) in self.info.engines() {
            match (caps, self.tasks(kind)) {
                (None, _) => writeln!(f, "  {name:<18} no")?,
                (Some(EngineCaps { bytes_max, list_max }), tasks) => {
                    write!(f, "  {name:<18} {bytes_max} bytes a task, lists of {list_max}, ")?;
                    match tasks {
                        Ok(tasks) => writeln!(f, "{tasks} tasks a context")?,
                        Err(error) => writeln!(f, "tasks unknown ({error})")?,
                    }
                }
            }
        }
        let memory = words([("export", self.info.exports_memory), ("import", self.info.imports_memory)]);
        writeln!(f, "  {:<18} {memory}", "memory")?;
        let sides = words([("server", self.info.comch.can_serve), ("client", self.info.comch.can_connect)]);
        write!(f, "  {:<18} {sides}, messages of {} bytes", "comch", self.info.comch.message_bytes_max)?;
        for function in &self.representors {
            let kind = if function.is_physical { "physical" } else { "virtual" };
            write!(f, "\n  {:<18} {function}, {kind}", "representor")?;
        }
        Ok(())
    }
}

/// One JSON object: which DOCA answered, and the list.
#[must_use]
pub(crate) fn json(list: &[Listed]) -> String {
    let devices: Vec<String> = list.iter().map(Listed::json).collect();
    format!(
        "{{\"built_for\":{:?},\"running_with\":{:?},\"emulator\":{},\"devices\":[{}]}}",
        doca::version::built_for(),
        doca::version::running_with(),
        doca::version::is_emulator(),
        devices.join(",")
    )
}
