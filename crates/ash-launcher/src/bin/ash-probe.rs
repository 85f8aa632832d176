//! Runs inside every sandbox before claude does, and tells ashd what the sandbox is: one JSON text on standard output.

fn main() -> anyhow::Result<()> {
    // The measuring forks, which asks for one thread: nothing was started before.
    let measured = ash_kernel::probe::measure();
    serde_json::to_writer(std::io::stdout(), &measured)?;
    Ok(())
}
