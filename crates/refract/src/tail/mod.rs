//! x
use std::{path::{Path,PathBuf}, time::Instant, os::fd::BorrowedFd};
/// x
pub enum LogTarget { /// x
 Path(PathBuf), /// x
 Stdin }
impl From<&Path> for LogTarget { fn from(p:&Path)->Self{ LogTarget::Path(p.into()) } }
/// x
pub struct Tail; 
/// x
#[derive(PartialEq)]
pub enum Progress { /// x
 More, /// x
 Drained, /// x
 Ended }
/// x
pub enum News { /// x
 Unreadable(String), /// x
 Other }
impl std::fmt::Display for News { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct TailError;
impl Tail { /// x
 pub fn open(_: &LogTarget, _: Instant)->Result<Self,TailError>{Ok(Self)} /// x
 pub fn sources(&self)->Vec<BorrowedFd<'_>>{vec![]} /// x
 pub fn woken(&mut self){} /// x
 pub fn check(&mut self, _:Instant){} /// x
 pub fn has_news(&self)->bool{false} /// x
 pub fn news(&mut self)->Vec<News>{vec![]} /// x
 pub fn read_chunk(&mut self,_:Instant,_: &mut impl FnMut(&[u8]))->Progress{Progress::Drained} }
