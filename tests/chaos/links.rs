//! An instance and its links, which can be cut.

use std::ops::Deref;

use crate::Result;
use crate::instances::Instance;
use crate::phase::Setup;
use crate::proxy::Proxy;
use crate::servers::{Environment, Server};

/// One instance between two proxies.
pub struct Linked {
    instance: Instance,
    pub rabbitmq: Proxy,
    pub postgres: Proxy,
}

impl Deref for Linked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.instance
    }
}

impl Linked {
    pub async fn new(index: usize, setup: &Setup, mut environment: Environment) -> Result<Self> {
        let rabbitmq = Proxy::to(setup.servers.address("RABBITMQ")?).await?;
        let postgres = Proxy::to(setup.servers.address("POSTGRES")?).await?;
        for (name, proxy) in [("RABBITMQ", &rabbitmq), ("POSTGRES", &postgres)] {
            environment.insert(format!("{name}_HOST"), "127.0.0.1".to_owned());
            environment.insert(format!("{name}_PORT"), proxy.port.to_string());
        }
        let command = vec![setup.binary.display().to_string(), "run".to_owned()];
        let instance = Instance::new(index, command, setup.directory.clone(), environment);
        Ok(Self { instance, rabbitmq, postgres })
    }

    pub const fn link(&self, server: Server) -> &Proxy {
        match server {
            Server::RabbitMq => &self.rabbitmq,
            Server::Postgres => &self.postgres,
        }
    }
}
