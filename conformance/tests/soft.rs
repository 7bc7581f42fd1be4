//! Every case on the soft device, and on virtual verbs over it.

use sojourn_conformance::{Case, Layer, Node, Options, Outcome, Summary, cases, loopback};
use sojourn_fabric::device::{DeviceContext, soft};
use sojourn_fabric::names::directory::LocalDirectory;
use sojourn_fabric::names::{JobKey, ServiceConfig};
use sojourn_fabric::virt::Process;
