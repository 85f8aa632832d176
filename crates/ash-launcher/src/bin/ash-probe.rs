//! Runs inside every sandbox before claude, and reports the sandbox's confinement to ashd: one JSON
//! text on standard output.

fn main() -> anyhow::Result<()> {
    // The measurement forks, which requires one thread: nothing was started before.
    let measured = ash_kernel::probe::measure();
    serde_json::to_writer(std::io::stdout(), &measured)?;
    Ok(())
}
