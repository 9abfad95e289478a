//! stub
use super::*;
use crate::identity::*;
#[derive(Debug, Clone)]
pub struct Client;
#[derive(Debug)]
pub struct OrderPermit;
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    Poll,
    Foreign,
}
#[derive(Debug)]
pub enum StatusLookup {
    Found(StatusAnswer),
    NotKnown,
}
impl Client {
    pub fn new(_: &crate::config::ThingSpace, _: &[crate::config::Credentials]) -> anyhow::Result<Self> {
        Ok(Self)
    }
    pub fn serves(&self, _: &AccountName) -> bool {
        true
    }
    pub async fn prepare_order(&self, _: &AccountName) -> Result<OrderPermit, Error> {
        panic!()
    }
    pub async fn place_order(&self, _: OrderPermit, _: &Order) -> Result<RequestId, Error> {
        panic!()
    }
    pub async fn request_status(
        &self,
        _: &AccountName,
        _: &RequestId,
        _: Purpose,
    ) -> Result<StatusLookup, Error> {
        panic!()
    }
}
