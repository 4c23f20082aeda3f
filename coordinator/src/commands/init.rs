//! x
/// x
#[derive(Debug, clap::Args)]
pub struct Arguments {}
/// x
pub async fn run(_: Arguments, _: &std::path::Path) -> anyhow::Result<()> {
    Ok(())
}
