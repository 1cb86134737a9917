//! Runs: a configuration, data, a trainer, and what is written on the way.

mod config;
mod schedule;
mod templates;

pub use config::{
    DataConfig, DpoConfig, EvaluateConfig, InitConfig, LoraConfig, MethodConfig, ModelConfig,
    OptimizerConfig, SampleConfig, SaveConfig, SourceConfig, StateConfig, TrainConfig,
};
pub use schedule::{ScheduleConfig, ScheduleKind};
pub use templates::{TEMPLATES, template};
