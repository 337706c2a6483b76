import sys,time,collections,tempfile,torch
from pathlib import Path
torch.set_num_threads(1)
from . import fuzz_agents
try:
    from . import fuzz_data
except ImportError as e: print(e)
try:
    from . import fuzz_values
except ImportError as e: print(e)
from .workers import run_cases
from .cases import *
kind=sys.argv[1]; n=int(sys.argv[2]); secs=float(sys.argv[3]); procs=int(sys.argv[4]) if len(sys.argv)>4 else 2
sc=Path(tempfile.mkdtemp())
t=time.time(); c=collections.Counter(); seen=collections.defaultdict(list)
slow=[]
for r in run_cases(kind,range(n),seed=0,scratch=sc,failing=Path('/tmp/failing'),processes=procs,until=time.monotonic()+secs):
    c[r.outcome]+=1; slow.append((r.seconds,r.number,r.notes,r.outcome))
    if r.outcome not in GOOD: seen[r.outcome].append(r)
print(c, time.time()-t)
for s in sorted(slow)[-5:]: print(s)
for o,rs in seen.items():
    print('=====',o,len(rs))
    import re
    g=collections.defaultdict(list)
    for r in rs: g[re.sub(r'[\d.e+-]+','#',r.detail)[:110]].append(r)
    for k,v in sorted(g.items(), key=lambda kv:-len(kv[1]))[:25]:
        print(len(v), f'{v[0].kind}:{v[0].number}', v[0].notes[:200],'|', v[0].detail[:300])
