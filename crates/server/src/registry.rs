//! The models that a server knows: named at the start, loaded on demand, unloaded when idle, within
//! the memory that was planned.

use crate::failure::{Failure, Kind};
use crate::model::{AdapterOrigin, Card, Machine, Model, Origin};
use lapidary_engine::{PlanError, Stats};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Mutex;

/// A model that requests can name, or one of its adapters, which stand behind it.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it is from.
    pub origin: Origin,
    /// What is known of it.
    pub card: Card,
    /// Its place among those that are loaded together: 0 is the base.
    place: usize,
    /// The adapters of the base.
    adapters: Arc<Vec<AdapterOrigin>>,
    state: Arc<State>,
}

/// What a model and its adapters share.
#[derive(Default)]
struct State {
    /// The model, and as each adapter changes it; empty while it is not loaded.
    slot: RwLock<Vec<Arc<Model>>>,
    /// When it was last asked for: milliseconds since the server's start.
    used: AtomicU64,
}

impl Entry {
    /// The model, if it is loaded.
    pub fn loaded(&self) -> Option<Arc<Model>> {
        let slot = self.state.slot.read().unwrap_or_else(PoisonError::into_inner);
        slot.get(self.place).cloned()
    }

    /// Unloads it if no request uses it. Its engine ends with the last handle.
    fn unload_unused(&self) -> bool {
        let mut slot = self.state.slot.write().unwrap_or_else(PoisonError::into_inner);
        let unused = !slot.is_empty() && slot.iter().all(|m| Arc::strong_count(m) == 1);
        if unused {
            slot.clear();
            tracing::info!(model = self.name, "unloaded");
        }
        unused
    }
}

/// All models of a server.
pub struct Registry {
    entries: BTreeMap<String, Arc<Entry>>,
    machine: Machine,
    /// Bytes that loaded models may use.
    memory: u64,
    started: Instant,
    /// One load at a time: it needs all cores, and the plan must hold.
    loading: Arc<Mutex<()>>,
}

/// Characters of a model's name besides letters and digits.
const IN_NAMES: &str = "-_.:+@/";

/// Whether a model may be called this. Names never become paths; this is for URLs and logs.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || IN_NAMES.contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(good) {
        return Err(format!(
            "{name:?} can't be the name of a model: 1 to 128 letters, digits and {IN_NAMES}"
        ));
    }
    Ok(())
}

impl Registry {
    /// A registry of `models`, none of them loaded.
    ///
    /// # Errors
    /// If a model or an adapter is damaged, has an unfit name or one that is taken, or does not fit into `memory`
    /// by itself.
    pub fn new(
        models: Vec<(String, Origin)>,
        adapters: Vec<AdapterOrigin>,
        machine: Machine,
        memory: u64,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut entries = BTreeMap::new();
        for (name, origin) in models {
            check_name(&name)?;
            let mut card = Card::read(&name, &origin, &machine, memory)?;
            let own: Vec<_> = adapters.iter().filter(|a| a.model == name).cloned().collect();
            if !own.is_empty() && !card.generates() {
                return Err(format!("{name} makes embeddings: it takes no adapters").into());
            }
            if !own.is_empty() && origin.slice.is_some() {
                return Err(format!("{name} is a part of its files: it takes no adapters").into());
            }
            let mut cards = Vec::new();
            for adapter in &own {
                let read = adapter.read()?;
                card.weight_bytes += read.bytes() as u64;
                cards.push((adapter.full_name(), adapter.card(&card, &read)));
            }
            let left = memory.saturating_sub(card.memory() - card.kv_bytes);
            // Less room for keys and values will do, as long as one sequence fits.
            card.kv_bytes = card.kv_bytes.min(left);
            let (weights, memory) = (card.weight_bytes >> 20, memory >> 20);
            card.check(&machine).map_err(|e| match e {
                PlanError::Memory { .. } => {
                    format!(
                        "{name} has {weights} MiB of weights, and --memory is {memory} MiB: {e}"
                    )
                }
                _ => format!("{name}: {e}"),
            })?;
            let (state, adapters) = (Arc::new(State::default()), Arc::new(own));
            cards.insert(0, (name, card));
            for (place, (name, card)) in cards.into_iter().enumerate() {
                check_name(&name)?;
                let (origin, adapters, state) = (origin.clone(), adapters.clone(), state.clone());
                let entry = Entry { name: name.clone(), origin, card, place, adapters, state };
                if entries.insert(name.clone(), Arc::new(entry)).is_some() {
                    return Err(format!("two models are called {name}").into());
                }
            }
        }
        if let Some(a) = adapters.iter().find(|a| !entries.contains_key(&a.model)) {
            return Err(format!("adapter {}: there is no model {:?}", a.name, a.model).into());
        }
        if machine.think.is_some() && !entries.values().any(|e: &Arc<Entry>| e.card.thinks) {
            return Err("--think, --no-think: no model here can think apart from its answer \
                        (their templates do not know it)"
                .into());
        }
        Ok(Self { entries, machine, memory, started: Instant::now(), loading: Arc::default() })
    }

    /// The models without their adapters.
    pub fn bases(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries().filter(|e| e.place == 0)
    }

    /// All models and adapters, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// Bytes that loaded models may use.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// A model by the name in a request; Ollama's `:latest` may be left out or added.
    ///
    /// # Errors
    /// If there is none; the names that there are.
    pub fn entry(&self, name: &str) -> Result<&Arc<Entry>, Failure> {
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        let found = self.entries.get(name).or_else(|| self.entries.get(plain));
        found.ok_or_else(|| {
            let names: Vec<&str> = self.entries.keys().take(20).map(String::as_str).collect();
            let short: String = name.chars().take(100).collect();
            Failure {
                field: Some("model".into()),
                ..Failure::new(
                    Kind::NotFound,
                    format!("there is no model {short:?} here; there is {}", names.join(", ")),
                )
            }
        })
    }

    /// A loaded model, loading it if need be.
    ///
    /// # Errors
    /// If there is no such model, no memory for it now, or it can't be loaded.
    pub async fn get(&self, name: &str) -> Result<Arc<Model>, Failure> {
        let entry = self.entry(name)?.clone();
        entry.state.used.store(self.started.elapsed().as_millis() as u64, Relaxed);
        if let Some(model) = entry.loaded() {
            return Ok(model);
        }
        let one = self.loading.clone().lock_owned().await;
        if let Some(model) = entry.loaded() {
            return Ok(model);
        }
        let base = self.base(&entry).clone();
        self.make_room(&base)?;
        let machine = self.machine.clone();
        // To its end even if the client goes away: the next one will want it.
        let load = tokio::task::spawn_blocking(move || {
            let _one = one;
            let start = Instant::now();
            let models =
                Model::load(&base.name, &base.origin, &base.card, &machine, &base.adapters)
                    .map_err(|e| format!("{} can't be loaded: {e}", base.name))?;
            let model = models.get(entry.place).cloned().ok_or("the adapter was not loaded")?;
            *base.state.slot.write().unwrap_or_else(PoisonError::into_inner) = models;
            let seconds = start.elapsed().as_secs_f64();
            tracing::info!(model = base.name, seconds, "loaded");
            Ok::<_, String>(model)
        });
        let loaded = load.await.unwrap_or_else(|e| Err(format!("loading failed: {e}")));
        loaded.map_err(|e| {
            tracing::error!("{e}");
            Failure::new(Kind::Internal, e)
        })
    }

    /// The model that an entry's adapter changes, or the entry.
    fn base<'a>(&'a self, entry: &'a Arc<Entry>) -> &'a Arc<Entry> {
        self.bases().find(|b| Arc::ptr_eq(&b.state, &entry.state)).unwrap_or(entry)
    }

    /// Bytes of the models that are loaded.
    fn in_use(&self) -> u64 {
        self.bases().filter(|e| e.loaded().is_some()).map(|e| e.card.memory()).sum()
    }

    /// Unloads models that nobody uses, the longest unused first, until `entry` fits.
    fn make_room(&self, entry: &Entry) -> Result<(), Failure> {
        let mut idle: Vec<&Arc<Entry>> = self.bases().filter(|e| e.loaded().is_some()).collect();
        idle.sort_by_key(|e| e.state.used.load(Relaxed));
        for other in idle {
            if self.in_use() + entry.card.memory() <= self.memory {
                break;
            }
            other.unload_unused();
        }
        let used = self.in_use();
        if used + entry.card.memory() > self.memory {
            return Err(Failure::new(
                Kind::Busy,
                format!(
                    "{} needs {} MiB; {} of {} MiB are used by models that are answering",
                    entry.name,
                    entry.card.memory() >> 20,
                    used >> 20,
                    self.memory >> 20
                ),
            ));
        }
        Ok(())
    }

    /// When a model will be unloaded if nobody asks for it; far away if never.
    pub fn expires(&self, entry: &Entry) -> SystemTime {
        let idle = self.machine.idle.unwrap_or(Duration::from_secs(100 * 365 * 86400));
        let used = Duration::from_millis(entry.state.used.load(Relaxed));
        let ago = self.started.elapsed().saturating_sub(used);
        SystemTime::now() + idle.saturating_sub(ago)
    }

    /// Unloads models that nobody has asked for during the time that models are kept.
    pub fn unload_idle(&self) {
        let Some(idle) = self.machine.idle else { return };
        let now = self.started.elapsed().as_millis() as u64;
        for entry in self.bases() {
            if now.saturating_sub(entry.state.used.load(Relaxed)) >= idle.as_millis() as u64 {
                entry.unload_unused();
            }
        }
    }

    /// What the engines of the loaded models have done.
    pub fn loaded_stats(&self) -> Vec<(String, Stats)> {
        let stats = |e: &Arc<Entry>| Some((e.name.clone(), e.loaded()?.engine().ok()?.stats()));
        self.bases().filter_map(stats).collect()
    }

    /// Cancels what still runs.
    pub fn stop(&self) {
        for model in self.bases().filter_map(|e| e.loaded()) {
            if let Ok(engine) = model.engine() {
                engine.stop();
            }
        }
    }

    /// The plan, a line for each model, for people.
    pub fn plan(&self) -> Vec<String> {
        let mib = |n: u64| n.div_ceil(1 << 20);
        let mut lines: Vec<String> = (self.bases())
            .map(|e| {
                let sees = if e.card.sees() { ", sees pictures" } else { "" };
                let thinks = match e.card.thinking(&self.machine) {
                    Some(true) => ", thinks",
                    Some(false) => ", does not think",
                    None => "",
                };
                format!(
                    "{}: {} {} {}, context {}, {} MiB of weights, {} MiB of keys and values{sees}{thinks}",
                    e.name,
                    e.card.family,
                    e.card.size(),
                    e.card.quantisation,
                    e.card.context,
                    mib(e.card.weight_bytes),
                    mib(e.card.kv_bytes)
                )
            })
            .collect();
        let all: u64 = self.bases().map(|e| e.card.memory()).sum();
        let (all, memory) = (mib(all), self.memory >> 20);
        lines.extend(
            self.entries().filter(|e| e.place > 0).map(|e| format!("{}: an adapter", e.name)),
        );
        lines.push(if self.bases().count() > 1 && all > memory {
            format!("all models together need {all} MiB, of {memory} MiB: they are loaded in turns")
        } else {
            format!("memory {all} MiB of {memory} MiB")
        });
        lines
    }
}
