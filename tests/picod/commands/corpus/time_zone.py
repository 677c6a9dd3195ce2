# env: TZ=Asia/Kolkata
import time, datetime
print(time.tzname, time.timezone, time.strftime("%H:%M", time.localtime(0)), datetime.datetime.fromtimestamp(0))
