"""The embedded stack: a real ZooKeeper and the services as processes of this machine, run as one."""
