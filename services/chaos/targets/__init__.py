"""The deployments that faults are injected into: `local` is the embedded stack, `compose` the containers of deploy/."""
