"""Recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .net import SEQUENCE, case, layer, linear


@case(SEQUENCE, rnn=lambda: nn.LSTM(6, 8, batch_first=True), a=linear(8, 4), ln=layer(4))
def lstm(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(m.rnn(x)[0]))


@case(SEQUENCE, rnn=lambda: nn.GRU(6, 8, 2, batch_first=True, bidirectional=True), ln=layer(16))
def gru(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.rnn(x)[0])


@case(SEQUENCE, a=linear(6, 6), ln=layer(6), cell=lambda: nn.LSTMCell(6, 5), out=linear(5, 4), last=layer(4))
def lstm_cells(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(3, 5)
    for step in x.unbind(1):
        h, c = m.cell(m.ln(m.a(step)), (h, c))
    return m.last(m.out(h))


@case(SEQUENCE, wi=linear(6, 20), wh=linear(5, 20), ni=layer(20), nh=layer(20), nc=layer(5))
def layer_norm_lstm(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(3, 5) + 0.1
    for step in x.unbind(1):
        i, f, g, o = (m.ni(m.wi(step)) + m.nh(m.wh(h))).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * m.nc(c).tanh()
    return h


@case(SEQUENCE, conv=lambda: nn.Conv1d(6, 15, 2, padding=1), ln=layer(5))
def qrnn(m: Any, x: Tensor) -> Tensor:
    z, f, o = m.conv(x.transpose(1, 2))[..., :-1].chunk(3, 1)
    c, outs = x.new_zeros(3, 5), []
    for t in range(4):
        c = f[..., t].sigmoid() * c + (1 - f[..., t].sigmoid()) * z[..., t].tanh()
        outs.append(o[..., t].sigmoid() * c)
    return m.ln(torch.stack(outs, 1))


@case(SEQUENCE, w=linear(6, 5), u=linear(5, 5), ln=layer(5))
def norm_of_a_sum_in_a_cell(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(3, 5) + 0.3
    for step in x.unbind(1):
        h = m.ln(m.w(step) + m.u(h)).tanh()
    return h


@case(SEQUENCE, w=linear(6, 5), g=linear(6, 5), ln=layer(5))
def linear_recurrence(m: Any, x: Tensor) -> Tensor:
    h, out = x.new_zeros(3, 5), []
    for step in x.unbind(1):
        gate = m.g(step).sigmoid()
        h = gate * h + (1 - gate) * m.w(step)
        out.append(h)
    return m.ln(torch.stack(out, 1))
