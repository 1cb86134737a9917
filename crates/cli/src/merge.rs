//! `lapidary merge`: an adapter into its base.

use crate::args::MergeArgs;
use crate::{Outcome, model, show};
use lapidary_ops::Pool;
use lapidary_tune::{Adapter, merge};
use std::path::Path;

/// Runs the command.
pub fn run(args: &MergeArgs) -> Outcome {
    // The built-in model has a name here: it stands where a path is expected.
    let base = (args.base != Path::new("default")).then_some(&*args.base);
    let base = model::checkpoint(base)?;
    let adapter = Adapter::open(&args.adapter)?;
    if args.out.exists() && args.out.canonicalize().ok() == args.base.canonicalize().ok() {
        return Err("the result can't take the base's place".into());
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let merged = merge(&base, &adapter, &args.out, &Pool::new(threads))?;
    if merged.quantised {
        show::note("note: the changed weights were quantised anew, in the type that they had");
    }
    println!("{}: {} of {} tensors changed", args.out.display(), merged.changed, merged.tensors);
    Ok(())
}
