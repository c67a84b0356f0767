use std::path::PathBuf;
#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .init();
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or("127.0.0.1:9092".into()).parse()?;
    let dir = PathBuf::from(args.next().unwrap_or("logd-data".into()));
    let node = logd::node::Node::start(addr, dir).await?;
    tokio::signal::ctrl_c().await?;
    node.stop().await;
    Ok(())
}
