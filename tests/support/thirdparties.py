"""Small third-party optimizers; in a module of its own because other processes import it by name."""

import torch


class TwoStep(torch.optim.Optimizer):
    """SAM in the first_step/second_step form, without mistakes."""

    def __init__(self, params, base_optimizer, rho=0.05, **settings):
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state
        self.saved = []

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.square().sum() for p in moved]).sum().sqrt()
        self.saved = [(p, p.clone()) for p in moved]
        for p in moved:
            p.add_(p.grad, alpha=float(self.param_groups[0]["rho"] / (norm + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p, before in self.saved:
            p.copy_(before)
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def load_state_dict(self, content):
        super().load_state_dict(content)
        self.base_optimizer.param_groups, self.base_optimizer.state = self.param_groups, self.state


class Rebinding(TwoStep):
    """The widely copied one: it restores weights into new storage, and saves no state of the base optimizer."""

    def __init__(self, params, base_optimizer, rho=0.05, **settings):
        torch.optim.Optimizer.__init__(self, params, {"rho": rho, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        super().first_step(zero_grad)
        for p, before in self.saved:
            self.state[p]["old_p"] = before

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p, _ in self.saved:
            p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def load_state_dict(self, content):
        torch.optim.Optimizer.load_state_dict(self, content)
        self.base_optimizer.param_groups = self.param_groups


class Closure(TwoStep):
    """SAM in torch's own form: ``step`` calls the closure twice."""

    first_step = second_step = None  # not its interface

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        TwoStep.first_step(self)
        with torch.enable_grad():
            closure()
        TwoStep.second_step(self)
        return loss


class NeedsMore(torch.optim.SGD):
    def __init__(self, params, schedule, **settings):
        super().__init__(params, **settings)
