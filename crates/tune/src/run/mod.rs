//! Runs: a configuration, data, a trainer, and what is written on the way.

mod checkpoint;
mod config;
mod init;
mod learner;
mod log;
mod report;
mod schedule;
mod templates;
mod train;

pub use config::{
    DataConfig, DpoConfig, EvaluateConfig, InitConfig, LoraConfig, MethodConfig, ModelConfig,
    OptimizerConfig, SampleConfig, SaveConfig, SourceConfig, StateConfig, TrainConfig,
};
pub use log::{Entry, read_log};
pub use report::{duration, write_report};
pub use schedule::{ScheduleConfig, ScheduleKind};
pub use templates::{TEMPLATES, template};
pub use train::{Event, Finished, Hooks, Learner, MakeLearner, train};

pub(crate) use init::TEXT_FILES;
